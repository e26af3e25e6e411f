"""Structured pruning of transformers: residual width, attention heads, MLP units."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import checks, tree_paths
from jaxkd.types import Variables
from jaxkd.weights import _tree

WIDTH, HEADS, MLP = "width", "key_value_heads", "mlp_width"

# The units along each axis of the arrays of `jaxkd.models`' transformers, by the ends of their names.
_AXES: Final[dict[str, tuple[str | None, ...]]] = {
    r"(query|key|value)/kernel": (WIDTH, HEADS),
    r"(query|key|value)/bias": (HEADS,),
    r"attention/out/kernel": (HEADS, WIDTH),
    r"attention/out/bias": (WIDTH,),
    r"mlp/(gate|up)/kernel": (WIDTH, MLP),
    r"mlp/(gate|up)/bias": (MLP,),
    r"mlp/down/kernel": (MLP, WIDTH),
    r"mlp/down/bias": (WIDTH,),
    r"(pooler|mlm/dense)/kernel": (WIDTH, WIDTH),
    r"(pooler|mlm/dense)/bias": (WIDTH,),
    r"(lm_head|classifier)/kernel": (WIDTH, None),
    r"(lm_head|classifier|mlm)/bias": (None,),
    r"embedding": (None, WIDTH),
    r"(attention_norm|mlp_norm|final_norm|norm)/(scale|bias)": (WIDTH,),
}
_LAYER = re.compile(r"layers/(\d+)/")


def prune_width(source: Any, importance: Mapping[str, Any], sizes: Mapping[str, int]) -> Variables:
    """Returns the weights of a narrower transformer, with the most important units.

    Also known as: Minitron

    The units of the largest importance are kept, in their order, in all arrays that they belong to: features of the
    residual stream in embeddings, norms, every layer and the head; key-value heads with the query heads that share
    them; units of each MLP. Muralidharan et al., "Compact Language Models via Pruning and Knowledge Distillation",
    2024, section 2.2.

    The importance of a unit is the mean square of its activation over examples and tokens. It ranks units as the
    paper's L2 norm does, and gives the share ``s`` of the residual stream's energy that is kept: norms divide by the
    root of the mean over the features, so that their scales are multiplied by ``√(s · old width / new width)``. Pruning
    units whose activation is 0 then changes no output, up to a norm's ε, and for LayerNorm where the features' mean is
    0. The paper leaves the scales as they are.

    Args:
      source: weights in any form that `flatten` takes, of a decoder or encoder whose modules are named like those of
        `jaxkd.models`.
      importance: for each entry of ``sizes``, the importance of the units: ``width`` ``[width]``, ``key_value_heads``
        ``[layers, key_value_heads]`` (sum over the features of the query heads of a group), ``mlp_width`` ``[layers,
        mlp_width]``.
      sizes: the new sizes, under the names of the fields of the configuration: ``width``, ``key_value_heads``,
        ``mlp_width``. What is not named keeps its size. ``head_dim`` stays: name it in the new configuration.

    Returns:
      `Variables` of the narrower model.

    Raises:
      ValueError: a size is unknown, larger than the old one or has no importance, or the importance has another shape;
        or an array is not known, and might hold units.

    >>> mlp = {"up": {"kernel": jnp.array([[1.0, 2.0, 3.0]])}, "down": {"kernel": jnp.array([[4.0], [5.0], [6.0]])}}
    >>> large = Variables({"layers": {0: {"mlp": mlp}}})
    >>> small = prune_width(large, {"mlp_width": [[0.1, 0.0, 0.7]]}, {"mlp_width": 2})
    >>> small.params["layers"][0]["mlp"]["up"]["kernel"]
    Array([[1., 3.]], dtype=float32)
    """
    variables = _tree.student_of(source)
    for name in sizes:
        checks.known(name, (WIDTH, HEADS, MLP), "sizes")
        checks.known(name, importance, "importance")
    arrays = tree_paths.by_path(variables.params)
    layers = {int(found[1]) for name in arrays if (found := _LAYER.search(name))}
    scores = {name: _scores(name, importance[name], size, len(layers)) for name, size in sizes.items()}
    kept = {name: np.sort(np.argsort(-x, axis=-1, kind="stable")[..., : sizes[name]]) for name, x in scores.items()}
    factor = 1.0
    if WIDTH in kept:
        energy = scores[WIDTH]
        share = energy[kept[WIDTH]].sum() / energy.sum() if energy.any() else 1.0
        factor = float(np.sqrt(share * energy.size / sizes[WIDTH]))

    def pruned(name: str, x: Any) -> Any:
        x, layer = np.asarray(x), _LAYER.search(name)  # on the host, where no shape is compiled
        for axis, unit in enumerate(_axes(name, x)):
            if unit in kept:
                units = kept[unit] if layer is None or unit == WIDTH else kept[unit][int(layer[1])]
                x = _taken(name, x, units, axis, unit, scores[unit].shape[-1])
        return jnp.asarray(x * np.asarray(factor, x.dtype) if name.endswith("norm/scale") else x)

    leaves = [pruned(name, x) for name, x in arrays.items()]
    return Variables(jax.tree.unflatten(jax.tree.structure(variables.params), leaves), variables.state)


def _scores(name: str, given: Any, size: int, layers: int) -> np.ndarray:
    """Returns the importance of units as float64, after checking it."""
    scores = np.asarray(given, np.float64)
    wanted = 1 if name == WIDTH else 2
    if scores.ndim != wanted or (wanted == 2 and len(scores) != layers):
        shape = f"[{name}]" if wanted == 1 else f"[{layers} layers, {name}]"
        raise ValueError(f"importance, {name}: expected {shape}, got {checks.shape(scores)}.")
    if not (np.isfinite(scores) & (scores >= 0)).all():
        wrong = scores[~(np.isfinite(scores) & (scores >= 0))][0]
        raise ValueError(f"importance, {name}: expected finite mean squares, at least 0, got {wrong:g} among them.")
    if not 1 <= size <= scores.shape[-1]:
        raise ValueError(f"sizes, {name}: expected 1 to {scores.shape[-1]}, got {size}.")
    return scores


def _axes(name: str, x: Any) -> tuple[str | None, ...]:
    for end, axes in _AXES.items():
        if re.search(f"(^|/){end}$", name) and len(axes) == x.ndim:
            return axes
    raise ValueError(f"{name} {checks.shape(x)}: expected an array of a decoder or encoder of jaxkd.models.")


def _taken(name: str, x: Any, units: np.ndarray, axis: int, unit: str, count: int) -> Any:
    """Returns the kept units along an axis; a head has several entries."""
    if x.shape[axis] % count or (unit != HEADS and x.shape[axis] != count):
        raise ValueError(
            f"{name} {checks.shape(x)}: expected {count} units, as in importance, {unit}, along axis {axis}."
        )
    entries = x.shape[axis] // count
    return np.take(x, (units[:, None] * entries + np.arange(entries)).ravel(), axis=axis)
