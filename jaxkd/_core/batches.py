"""Number of examples and mask of a batch, and entries of a step's context by path.

Also the examples of a batch that a cached teacher saw otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core import checks, tree_paths
from jaxkd._core.checks import describe, shape
from jaxkd.types import RESERVED, UNSEEN, Array, Context, Mean, Metrics, Outputs, PyTree

Path = str | tuple["Path", ...]
"""Location of an argument, such as ``"student/logits"``; a tuple of paths for a loss that takes several features."""

_ROOTS = {
    "student": "Features come from the taps of the student's adapter.",
    "teacher": "Features come from the taps of the teacher's adapter.",
    "batch": "",
    "student_params": "Parts of a parameter's path are joined by slashes.",
    "teacher_params": "Those of an ensemble begin with the member's name; a teacher of cached outputs has none.",
}
_PARAMS = ("student_params", "teacher_params")


def batch_size(batch: Mapping[str, Any]) -> int:
    """Returns the number of examples: the leading dimension that all arrays share.

    Entries that a step adds for models are left out.

    Raises:
      ValueError: the batch is empty, or its arrays disagree.

    >>> import jax
    >>> batch_size({"image": jax.numpy.zeros((8, 4)), "label": jax.numpy.zeros(8, int)})
    8
    """
    given = {name: x for name, x in batch.items() if name not in RESERVED}
    sizes = {name: x.shape[0] if getattr(x, "ndim", 0) else None for name, x in given.items()}
    if len(set(sizes.values())) != 1 or None in sizes.values():
        raise ValueError(
            f"batch: expected a dict of arrays [batch, ...] with one leading dimension, got {describe(given)}."
        )
    return next(iter(sizes.values()))  # type: ignore[return-value]


def example_mask(batch: Mapping[str, Any]) -> Array | None:
    """Returns the examples that the batch's ``mask`` includes, or None without one.

    A mask over tokens ``[batch, tokens, ...]`` includes an example where it includes any of its tokens.

    Raises:
      ValueError: the mask is not boolean ``[batch]`` or ``[batch, tokens, ...]``.

    >>> example_mask({"mask": jnp.array([[True, False], [False, False]])}).tolist()
    [True, False]
    """
    mask = batch.get("mask")
    if mask is None:
        return None
    if not hasattr(mask, "dtype") or mask.dtype != bool or not mask.ndim:
        raise ValueError(
            "batch['mask']: expected bool[batch] or bool[batch, tokens...], True for the examples or tokens to "
            f"include, got {shape(mask)}. Another mask for one term is term(..., where='batch/NAME'), and float "
            "weights are term(..., weights='batch/NAME')."
        )
    return mask if mask.ndim == 1 else jnp.any(mask, axis=tuple(range(1, mask.ndim)))


def count_examples(batch: Mapping[str, Any]) -> Array | int:
    """Returns the number of examples that the batch's mask includes.

    >>> int(count_examples({"mask": jnp.array([True, False])})), count_examples({"label": jnp.zeros(3)})
    (1, 3)
    """
    mask = example_mask(batch)
    return batch_size(batch) if mask is None else jnp.sum(mask, dtype=jnp.float32)


def exclude(batch: Mapping[str, Any], included: Any) -> dict[str, Any]:
    """Returns a batch whose ``mask`` also excludes some examples.

    They are those that the ``[batch]`` array does not include. A mask that the batch has, over examples or over their
    tokens, is kept beside it.

    >>> exclude({"mask": jnp.array([[True, False], [True, True]])}, jnp.array([True, False]))["mask"].tolist()
    [[True, False], [False, False]]
    """
    mask = batch.get("mask")
    if mask is not None:
        included = mask & included.reshape(-1, *(1,) * (mask.ndim - 1))
    return {**batch, "mask": included}


def mask_of_shape(context: Context, shape: tuple[int, ...]) -> Array | None:
    """Returns the batch's mask broadcast to a shape, or None without one.

    A mask over tokens applies to arrays ``[batch, tokens, ...]`` of the same tokens, and to arrays whose rows are the
    tokens of all examples, ``[batch · tokens, ...]``. For any other array, such as a pooled feature ``[batch,
    features]``, it includes the examples with any token.

    Raises:
      ValueError: the array has another number of examples than the mask.

    >>> context = Context({}, {}, {"mask": jnp.array([[True, False], [False, False]])}, 0)
    >>> [mask_of_shape(context, shape).tolist() for shape in ((2,), (2, 2), (4,))]
    [[True, False], [[True, False], [False, False]], [True, False, False, False]]
    """
    examples = example_mask(context.batch)
    if examples is None:
        return None
    fitted = broadcast(context.batch["mask"], shape)
    if fitted is None:
        fitted = broadcast(examples, shape)
    if fitted is None:
        raise ValueError(
            f"batch['mask']: expected arrays of its {examples.shape[0]} examples, {list(examples.shape)}, got an array "
            f"{list(shape)}."
        )
    return fitted


def over_tokens(mask: Array, shape: tuple[int, ...]) -> bool:
    """Returns whether an array has an axis of the tokens of a mask, and further ones.

    The tokens are the axes after the batch, ``[batch, tokens, ..., features]``, or of a sequence any axis but the last
    one, ``[batch, heads, tokens, ...]``.

    >>> mask = jnp.ones((2, 3), bool)
    >>> [over_tokens(mask, shape) for shape in ((2, 3, 5), (2, 4, 3, 3), (2, 3), (2, 4, 5))]
    [True, True, False, False]
    """
    if mask.ndim == 1 or len(shape) <= mask.ndim or shape[0] != mask.shape[0]:
        return False
    return tuple(shape[: mask.ndim]) == mask.shape or (mask.ndim == 2 and mask.shape[1] in shape[1:-1])


def check_tokens(what: str, mask: Array, shape: tuple[int, ...]) -> None:
    """Raises for features of a sequence whose tokens are not as many as the mask's.

    A single token belongs to its example. A map of another resolution than the mask has the mask of its examples.

    >>> check_tokens("hint", jnp.ones((2, 3), bool), (2, 4, 5))
    Traceback (most recent call last):
    ValueError: hint: expected features of the 3 tokens of batch['mask'] [2, 3], got [2, 4, 5]: which of the 4 tokens \
are padding is unknown. Give a mask of these tokens. If all of them count, make batch['mask'] a mask over examples \
[batch], and name that of the tokens by term(..., where='batch/NAME') where it applies.
    """
    if mask.ndim != 2 or len(shape) != 3 or shape[0] != mask.shape[0] or shape[1] in (1, mask.shape[1]):
        return
    raise ValueError(
        f"{what}: expected features of the {mask.shape[1]} tokens of batch['mask'] {list(mask.shape)}, got "
        f"{list(shape)}: which of the {shape[1]} tokens are padding is unknown. Give a mask of these tokens. If all of "
        "them count, make batch['mask'] a mask over examples [batch], and name that of the tokens by "
        "term(..., where='batch/NAME') where it applies."
    )


def broadcast(mask: Array, shape: tuple[int, ...]) -> Array | None:
    """Returns a mask or weights broadcast to a shape, or None if they do not fit.

    The shape begins with their own. It may also begin with the number of their entries: rows that are the tokens of all
    examples.
    """
    if mask.shape != tuple(shape[: mask.ndim]):
        if tuple(shape[:1]) != (mask.size,):
            return None
        mask = mask.reshape(-1)
    return jnp.broadcast_to(jnp.expand_dims(mask, tuple(range(mask.ndim, len(shape)))), shape)


def lookup(context: Context, path: Path) -> Any:
    """Returns the value at a path such as ``"student/logits"`` or ``"batch/label"``.

    Args:
      context: outputs and batch of the step.
      path: root, slash and name; the name may itself contain slashes. A tuple or list of paths gives a tuple of values.
        ``"student_params/head/kernel"`` is a parameter of the student, and ``"teacher_params/..."`` one of the teacher;
        ``"student_params/embed/embedding.T"`` is a matrix transposed, such as an embedding table used as a kernel.

    Raises:
      ValueError: the path is not a string, or its root or name does not exist; the message lists the available ones.

    >>> lookup(Context({"logits": 1}, {}, {"label": 2}, 0), "batch/label")
    2
    """
    if isinstance(path, (tuple, list)):
        return tuple(lookup(context, part) for part in path)
    if not isinstance(path, str):
        raise ValueError(f"path: expected one such as 'student/logits' or 'batch/label', got {path!r}.")
    root, _, name = path.partition("/")
    checks.known(
        root, list(_ROOTS), f"path {path!r}, root", hint="A path reads like 'student/logits' or 'batch/label'."
    )
    if root in _PARAMS:
        return _parameter(getattr(context, root), path, name)
    found = getattr(context, root)
    if name not in found:  # an objective of hundreds of terms looks up each of them among hundreds of outputs
        checks.known(name, checks.shapes(found), f"path {path!r}, {root} entry", hint=_ROOTS[root])
    return found[name]


def _parameter(params: PyTree, path: str, name: str) -> Any:
    """Returns a parameter by its path in the tree, transposed if this ends in ``.T``."""
    leaves = tree_paths.by_path(params)
    plain = name.removesuffix(".T")
    # A parameter boxed with its partitioning is the leaf `value` of the box.
    found = [x for x in (name, f"{name}/value", plain, f"{plain}/value") if x in leaves]
    if not found:
        root = path.partition("/")[0]
        checks.known(plain, checks.shapes(leaves), f"path {path!r}, {root} parameter", hint=_ROOTS[root])
    value = leaves[found[0]]
    if found[0] in (name, f"{name}/value"):
        return value
    if len(value.shape) != 2:
        raise ValueError(f"path {path!r}: expected a matrix to transpose, got {checks.shape(value)}.")
    if isinstance(value, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(value.shape[::-1], value.dtype)
    return value.T


UNSEEN_INPUTS = "unseen_inputs"
"""Metric of a step with a cached teacher: the share of examples whose inputs are not those that the teacher saw."""


def split_unseen(outputs: Outputs, batch: Mapping[str, Any]) -> tuple[Outputs, Metrics]:
    """Returns a teacher's outputs without `jaxkd.types.UNSEEN`, and its metric.

    All floating-point outputs of an unseen example become NaN, so that a loop that reads no metrics notices too. Masked
    examples are not counted. Without the entry, the outputs are returned unmodified, and no metric.

    >>> outputs = {"logits": jnp.ones((2, 1)), "a/_unseen": jnp.array([False, True])}
    >>> found, metrics = split_unseen(outputs, {})
    >>> found["logits"].tolist(), float(metrics[UNSEEN_INPUTS].sum)
    ([[1.0], [nan]], 1.0)
    """
    flags = {name: x for name, x in outputs.items() if name.rpartition("/")[2] == UNSEEN}
    if not flags:
        return outputs, {}
    unseen, mask = functools.reduce(jnp.logical_or, flags.values()), example_mask(batch)
    counted = jnp.ones(unseen.shape, bool) if mask is None else mask
    unseen = unseen & counted
    kept = {name: _without(x, unseen) for name, x in outputs.items() if name not in flags}
    return kept, {UNSEEN_INPUTS: Mean(jnp.sum(unseen, dtype=jnp.float32), jnp.sum(counted, dtype=jnp.float32))}


def is_unseen_metric(name: str) -> bool:
    """Returns whether a metric is `UNSEEN_INPUTS`, or that of one run of several.

    >>> is_unseen_metric("unseen_inputs[3]"), is_unseen_metric("loss")
    (True, False)
    """
    return name.partition("[")[0] == UNSEEN_INPUTS


def _without(x: Array, unseen: Array) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.shape[:1] != unseen.shape:
        return x
    return jnp.where(jnp.expand_dims(unseen, tuple(range(1, x.ndim))), jnp.nan, x)
