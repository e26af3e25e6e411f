"""Similarity of layers: linear CKA and SVCCA between student and teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxkd._core import batches
from jaxkd._core.batches import lookup
from jaxkd.types import Context, Mean, Metrics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


def linear_cka(
    x: Float[Array, "examples *features"],
    y: Float[Array, "examples *features_y"],
    *,
    where: Bool[Array, " examples"] | None = None,
) -> Float[Array, ""]:
    """Linear CKA of centered features: ``‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F)``.

    Also known as: centered kernel alignment (CKA).

    Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019, section 3. It is invariant to
    rotations and isotropic scaling of the features.

    Args:
      x: features of one layer; dimensions after the examples are flattened.
      y: features of another layer, for the same examples.
      where: mask, True for examples to include.

    Returns:
      A number in [0, 1]; 0 if a layer is constant.

    Raises:
      ValueError: the numbers of examples differ.

    >>> x = jax.random.normal(jax.random.key(0), (20, 3))
    >>> linear_cka(x, 2 * x[:, ::-1]).round(4)
    Array(1., dtype=float32)
    """
    x, y = _centered(x, y, where)

    def product(a: Array, b: Array) -> Array:
        """Computes ‖aᵀb‖²_F from the smaller of the two kinds of Gram matrices."""
        if a.shape[1] * b.shape[1] <= a.shape[0] ** 2:
            return jnp.sum(_matmul(a.T, b) ** 2)
        return jnp.sum(_matmul(a, a.T) * _matmul(b, b.T))

    scale = jnp.sqrt(product(x, x)) * jnp.sqrt(product(y, y))
    return jnp.where(scale > 0, product(x, y) / jnp.where(scale > 0, scale, 1), 0)


def svcca(
    x: Float[Array, "examples *features"],
    y: Float[Array, "examples *features_y"],
    *,
    variance: float = 0.99,
    where: Bool[Array, " examples"] | None = None,
) -> Float[Array, ""]:
    """Mean canonical correlation between the principal directions of two layers.

    Also known as: SVCCA (singular vector canonical correlation analysis).

    Each layer is reduced to the singular directions that hold a share of its variance, and the canonical correlations
    between the reduced layers are averaged. Raghu et al., "SVCCA", NeurIPS 2017; between teacher and student: Gotmare
    et al., "A Closer Look at Deep Learning Heuristics", ICLR 2019, section 5. The value is meaningful only with many
    more examples than directions.

    Args:
      x: features of one layer; dimensions after the examples are flattened.
      y: features of another layer, for the same examples.
      variance: share of the variance to keep, in (0, 1].
      where: mask, True for examples to include.

    Returns:
      A number in [0, 1]; 0 if a layer is constant.

    Raises:
      ValueError: the numbers of examples differ, or ``variance`` is out of its range.

    >>> x = jax.random.normal(jax.random.key(0), (40, 3))
    >>> svcca(x, x @ jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 3.0], [1.0, 0.0, 1.0]])).round(3)
    Array(1., dtype=float32)
    """
    if not 0 < variance <= 1:
        raise ValueError(f"variance: expected a share in (0, 1], got {variance}.")
    x, y = _centered(x, y, where)

    def directions(a: Array) -> tuple[Array, Array]:
        """Returns orthonormal columns, with zeros for dropped ones, and their number."""
        u, s, _ = jnp.linalg.svd(a, full_matrices=False)
        share = s**2 / jnp.where(jnp.any(s > 0), jnp.sum(s**2), 1)
        # Summed from the smallest: subtracting a sum of the largest from 1 would leave no significant digits.
        left = jnp.cumsum(share[::-1])[::-1]
        resolution = s[:1] * max(a.shape) * jnp.finfo(s.dtype).eps
        kept = (left > 1 - variance) & (s > resolution)
        return jnp.where(kept[None, :], u, 0), jnp.sum(kept)

    (u, kept_x), (v, kept_y) = directions(x), directions(y)
    correlations = jnp.linalg.svd(_matmul(u.T, v), compute_uv=False)
    return jnp.minimum(jnp.sum(correlations) / jnp.maximum(jnp.minimum(kept_x, kept_y), 1), 1)


def layer_similarity(
    pairs: Mapping[str, tuple[str, str]], *, measure: Callable[..., Array] = linear_cka
) -> Callable[[Context], Metrics]:
    """Returns a metrics function for the similarities of pairs of layers.

    Pass it as ``distill(..., metrics=layer_similarity({"stage2": (...)}))``.

    Args:
      pairs: paths of two features, by the name to report them under.
      measure: `linear_cka`, `svcca`, or any function of two features and ``where``.

    Returns:
      A function of the `Context` that reports ``similarity/NAME``. Over several batches, their values are averaged,
      weighted by numbers of examples; this approximates the value of the whole set if batches are much larger than
      the number of directions. On several devices, the value is that of the global batch.

    >>> context = Context({"f": jnp.eye(4)}, {"f": 3 * jnp.eye(4)}, {}, 0)
    >>> layer_similarity({"last": ("student/f", "teacher/f")})(context)["similarity/last"].count
    Array(4., dtype=float32)
    """

    def metrics(context: Context) -> Metrics:
        mask = batches.example_mask(context.batch)
        reported: dict[str, Mean] = {}
        for name, paths in pairs.items():
            x, y = (jnp.asarray(lookup(context, path)) for path in paths)
            where = jnp.ones(x.shape[0], bool) if mask is None else mask
            count = jnp.sum(where, dtype=jnp.float32)
            if context.axis_name is not None:
                x, y, where = (jax.lax.all_gather(a, context.axis_name, tiled=True) for a in (x, y, where))
            reported[f"similarity/{name}"] = Mean(count * measure(x, y, where=where).astype(jnp.float32), count)
        return reported

    return metrics


def _centered(x: Array, y: Array, where: Array | None) -> tuple[Array, Array]:
    x, y = jnp.asarray(x), jnp.asarray(y)
    if x.ndim < 2 or y.ndim < 2 or x.shape[0] != y.shape[0]:
        raise ValueError(
            f"y: expected features [examples, ...] for the examples of x, {list(x.shape)}, got {list(y.shape)}."
        )
    keep = jnp.ones(x.shape[0], bool) if where is None else jnp.asarray(where)

    def centered(a: Array) -> Array:
        a = a.reshape(a.shape[0], -1).astype(jnp.promote_types(a.dtype, jnp.float32))
        a = jnp.where(keep[:, None], a, 0)
        mean = jnp.sum(a, axis=0, keepdims=True) / jnp.maximum(jnp.sum(keep), 1)
        return jnp.where(keep[:, None], a - mean, 0)

    return centered(x), centered(y)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
