"""Logits of several networks and the labels, combined into one teacher's logits.

Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020 (KDCL), section 3. The combination is
chosen for each example with the help of its label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from . import _checks

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

__all__ = ["best_logits", "combined_logits", "min_logits"]


_FAR = 1e30  # stands in for an infinite difference: a fraction of it is still large, and 0 times it is 0


def best_logits(
    logits: Float[Array, "members *batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch classes"]:
    """Returns the logits of each example's member with the least cross-entropy.

    Also known as: KDCL-Naive.

    ``z_k`` with ``k = argmin_i CE(z_i, y)``; the first of several equally good members. Guo et al., "Online Knowledge
    Distillation via Collaborative Learning", CVPR 2020.

    Args:
      logits: logits of all members ``[members, ..., classes]``.
      labels: integer class of each example ``[...]``.

    Returns:
      Logits ``[..., classes]``, in float32 or better.

    Raises:
      ValueError: the logits are not floating point, there are no members, or the labels do not fit.

    >>> best_logits(jnp.array([[[1.0, 0.0]], [[3.0, 1.0]]]), jnp.array([0]))
    Array([[3., 1.]], dtype=float32)
    """
    logits, gaps = _gaps("best_logits", logits, labels)
    first = jnp.argmin(jax.nn.logsumexp(gaps, axis=-1), axis=0)
    return jnp.take_along_axis(logits, first[None, ..., None], axis=0)[0]


def combined_logits(
    logits: Float[Array, "members *batch classes"], labels: Int[Array, "*batch"], *, sweeps: int = 4
) -> Float[Array, "*batch classes"]:
    """Returns the convex combination of logits with the least cross-entropy.

    Also known as: KDCL-Linear.

    ``Σ_i α_i z_i`` with ``α = argmin CE(Σ_i α_i z_i, y)``, ``α_i ≥ 0`` and ``Σ_i α_i = 1``, for each example. Guo et
    al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020. The problem is convex. It is solved by
    moves of weight between two members: from the one whose weight raises the loss most to the one whose weight lowers
    it most, by the amount that a bisection finds. For two members one move is the solution; a sweep is one move fewer
    than there are members.

    Args:
      logits: logits of all members ``[members, ..., classes]``.
      labels: integer class of each example ``[...]``.
      sweeps: number of sweeps of moves; more than four change little.

    Returns:
      Logits ``[..., classes]``, in float32 or better. They are meant as a target: the weights have no gradient; apply
      `jax.lax.stop_gradient` to the result.

    Raises:
      ValueError: the logits are not floating point, there are no members, or the labels do not fit; or ``sweeps`` is
        not positive.

    >>> logits = jnp.array([[[0.0, 2.0, -2.0]], [[0.0, -2.0, 2.0]]])
    >>> combined_logits(logits, jnp.array([0])).round(3) + 0.0
    Array([[0., 0., 0.]], dtype=float32)
    """
    sweeps = _checks.whole("sweeps", sweeps, expected="a positive number")
    logits, gaps = _gaps("combined_logits", logits, labels)
    members = logits.shape[0]
    weights = jax.lax.stop_gradient(_weights(gaps, sweeps * (members - 1)))[..., None]
    return jnp.sum(jnp.where(weights > 0, weights * logits, 0), axis=0)


def min_logits(
    logits: Float[Array, "members *batch classes"], labels: Int[Array, "*batch"]
) -> Float[Array, "*batch classes"]:
    """Returns the least of the members' logits relative to the label's, by class.

    Also known as: KDCL-MinLogit.

    ``min_i (z_i,c − z_i,y)`` for each class c, hence 0 for the label. Guo et al., "Online Knowledge Distillation via
    Collaborative Learning", CVPR 2020. Its cross-entropy is at most that of the best member.

    Args:
      logits: logits of all members ``[members, ..., classes]``.
      labels: integer class of each example ``[...]``.

    Returns:
      Logits ``[..., classes]``, in float32 or better.

    Raises:
      ValueError: the logits are not floating point, there are no members, or the labels do not fit.

    >>> min_logits(jnp.array([[[1.0, 0.0, 3.0]], [[2.0, 4.0, 3.0]]]), jnp.array([0]))
    Array([[ 0., -1.,  1.]], dtype=float32)
    """
    logits, gaps = _gaps("min_logits", logits, labels)
    excluded = jnp.any(logits == -jnp.inf, axis=0) & (jnp.min(gaps, axis=0) < 0)
    return jnp.where(excluded, -jnp.inf, jnp.min(gaps, axis=0))


def _gaps(name: str, logits: Array, labels: Array) -> tuple[Array, Array]:
    """Returns the logits upcast, and ``z_c − z_y``, finite for excluded classes too."""
    logits, labels = jnp.asarray(logits), jnp.asarray(labels)
    if not jnp.issubdtype(logits.dtype, jnp.floating) or logits.ndim < 2 or not logits.shape[0]:
        raise ValueError(
            f"{name}, logits: expected floating-point [members, ..., classes], got {logits.dtype}{list(logits.shape)}."
        )
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != logits.shape[1:-1]:
        raise ValueError(
            f"{name}, labels: expected integer classes {list(logits.shape[1:-1])} (the logits' {list(logits.shape)} "
            f"without members and classes), got {labels.dtype}{list(labels.shape)}."
        )
    logits = _checks.widen(logits)
    # A loss of the result treats an invalid label; here the label only has to index some class.
    place = jnp.clip(labels.astype(jnp.int32), 0, logits.shape[-1] - 1)[..., None]
    own = jnp.take_along_axis(logits, jnp.broadcast_to(place, (logits.shape[0], *place.shape)), axis=-1)
    gaps = jnp.where(logits == -jnp.inf, -_FAR, jnp.clip(logits - own, -_FAR, _FAR))
    is_label = jax.nn.one_hot(place[..., 0], logits.shape[-1], dtype=bool)
    return logits, jnp.where(is_label[None], 0, gaps)


def _weights(gaps: Array, moves: int) -> Array:
    """Returns the α ``[members, ...]`` that minimizes ``log Σ_c exp(Σ_i α_i g_i,c)``."""
    members = gaps.shape[0]
    index = jnp.arange(members).reshape(-1, *[1] * (gaps.ndim - 2))
    halvings = 30 if gaps.dtype == jnp.float32 else 60

    def slopes(weights: Array) -> Array:
        share = jax.nn.softmax(jnp.sum(weights[..., None] * gaps, axis=0), axis=-1)
        return jnp.sum(share[None] * gaps, axis=-1)

    def move(_: int, weights: Array) -> Array:
        slope = slopes(weights)
        to = jnp.argmin(slope, axis=0)[None]
        off = jnp.argmax(jnp.where(weights > 0, slope, -jnp.inf), axis=0)[None]
        direction = (index == to).astype(gaps.dtype) - (index == off).astype(gaps.dtype)
        most = jnp.take_along_axis(weights, off, axis=0)

        def moved(by: Array) -> Array:
            # A weight that is moved entirely becomes exactly 0, without a rounding error.
            return jnp.where((index == off) & (index != to) & (by >= most), 0, weights + by * direction)

        def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = 0.5 * (low + high)
            downhill = jnp.sum(slopes(moved(middle)) * direction, axis=0, keepdims=True) < 0
            return jnp.where(downhill, middle, low), jnp.where(downhill, high, middle)

        whole = jnp.sum(slopes(moved(most)) * direction, axis=0, keepdims=True) <= 0
        low, _ = jax.lax.fori_loop(0, halvings, halve, (jnp.zeros_like(most), most))
        return moved(jnp.where(whole, most, low))

    # The best member is usually the solution.
    best = jnp.argmin(jax.nn.logsumexp(gaps, axis=-1), axis=0)[None]
    return jax.lax.fori_loop(0, moves, move, (index == best).astype(gaps.dtype))
