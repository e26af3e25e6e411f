"""Quantization arithmetic: buckets of weights to integer codes and back.

A weight tensor is flattened in row-major order and cut into buckets, of which the last may be shorter. Each bucket is
scaled to [0, 1] by its minimum β and width α = max − min: Polino, Pascanu & Alistarh, "Model compression via
distillation and quantization", ICLR 2018, section 2 (linear scaling). The arithmetic is float32 for weights of any
dtype. Every rounding is fixed explicitly, so that eager, compiled and fused programs, and files of codes, agree
bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import checks
from jaxkd._core.arrays.casts import cast
from jaxkd._core.tree_paths import by_path
from jaxkd.types import Array, PyTree

_TINY, _WIDEST = np.float32(2.0**-126), np.float32(2.0**126)  # range whose reciprocals are not flushed to 0


def encode(weight: Array, bits: int, bucket: int | None, key: Array | None = None) -> tuple[Array, Array, Array]:
    """Rounds a tensor to codes ``[buckets, bucket]``, with β and α/s ``[buckets, 1]``.

    The codes are whole numbers from 0 to s = ``2^bits − 1``, in float32. Copies of the last weight pad the last bucket.
    A key rounds at random, up with the probability of the fractional part.

    >>> [x.tolist() for x in encode(jnp.array([1.0, 2.0, 4.0]), 2, 3)]
    [[[0.0, 1.0, 3.0]], [[1.0]], [[1.0]]]
    """
    x, top = _bucketed(weight, bucket), 2**bits - 1
    offset, width = _range(x)
    step = width * np.float32(1 / top)
    step = jnp.where(step >= _TINY, step, 0)
    level = jnp.minimum((x - offset) * _reciprocal(step), top)
    level = jnp.round(level) if key is None else jnp.floor(level + jax.random.uniform(key, level.shape, jnp.float32))
    return jnp.where(step > 0, jnp.minimum(level, top), 0), offset, step


def encode_to(weight: Array, points: Array, bucket: int | None) -> tuple[Array, Array, Array]:
    """Returns indices of the nearest points ``[buckets, bucket]``, with β and α.

    The points must ascend; β and α are ``[buckets, 1]``.

    >>> encode_to(jnp.array([1.0, 2.0, 5.0]), jnp.array([0.0, 0.5, 1.0]), 3)[0].tolist()
    [[0, 1, 2]]
    """
    u, offset, width = scaled(weight, bucket)
    middles = (points[1:] + points[:-1]) * 0.5
    return jnp.searchsorted(middles, u, side="right", method="scan_unrolled"), offset, width


def decode(levels: Array, offset: Array, step: Array, like: Any) -> Array:
    """Computes ``offset + levels·step``, in the shape and dtype of a tensor.

    A compiler may fuse the product and the sum into one operation with a single rounding, or may not. Rounding the
    product to one bit less than float32 first makes both variants round twice, to the same result.
    """
    return shaped(offset + jax.lax.reduce_precision(levels * step, 8, 22), like)


def _bucketed(weight: Array, bucket: int | None) -> Array:
    flat = cast(jnp.asarray(weight), jnp.float32).reshape(-1)
    size = min(bucket or flat.size, flat.size)
    return jnp.pad(flat, (0, -flat.size % size), mode="edge").reshape(-1, size)


def shaped(x: Array, like: Any) -> Array:
    """Restores a tensor's shape and dtype from buckets, without the padding.

    >>> shaped(jnp.array([[1.0, 2.0], [3.0, 3.0]]), jnp.zeros(3))
    Array([1., 2., 3.], dtype=float32)
    """
    restored: Array = cast(x.reshape(-1)[: like.size].reshape(like.shape), like.dtype)
    return restored


def _range(x: Array) -> tuple[Array, Array]:
    low, high = jnp.min(x, axis=1, keepdims=True), jnp.max(x, axis=1, keepdims=True)
    width = jnp.minimum(high - low, _WIDEST)
    return low, jnp.where(width < _TINY, 0, width)


def scaled(weight: Array, bucket: int | None) -> tuple[Array, Array, Array]:
    """Scales a tensor's buckets to [0, 1], with β and α ``[buckets, 1]``.

    A bucket of equal weights is scaled to 0.

    >>> scaled(jnp.array([1.0, 3.0, 5.0]), 3)[0]
    Array([[0. , 0.5, 1. ]], dtype=float32)
    """
    x = _bucketed(weight, bucket)
    offset, width = _range(x)
    return jnp.where(width == 0, 0, jnp.minimum((x - offset) * _reciprocal(width), 1)), offset, width


def _reciprocal(x: Array) -> Array:
    """Computes 1/x, rounded to one bit less than float32.

    A compiler may replace a division by a product with the reciprocal; the explicit reciprocal leaves it no choice.
    """
    return jax.lax.reduce_precision(1 / jnp.where(x > 0, x, 1), 8, 22)


def check(what: str, bits: int, bucket: int | None) -> None:
    """Raises unless ``bits`` and ``bucket`` are in range.

    Raises:
      ValueError: bits or bucket are out of range.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        raise ValueError(
            f"{what}, bits: expected a whole number from 1 to 8, got {bits}. For 16 bits use "
            "jaxkd.wrappers.precision; 32 bits need no wrapper."
        )
    if bucket is not None and (isinstance(bucket, bool) or not isinstance(bucket, int) or bucket < 2):
        raise ValueError(f"{what}, bucket: expected at least 2 weights, or None for whole tensors, got {bucket}.")


Include = str | Callable[[str, Any], bool] | None
"""Selects tensors: a regular expression to find in the path, such as ``"Conv_|Dense_1"``; a predicate of path and
array; or None for all of two or more axes that are not called ``bias`` or ``scale``. Only floating point is ever
quantized."""


def chosen_tensors(what: str, params: PyTree, include: Include) -> list[str]:
    """Returns the paths of the tensors that ``include`` selects.

    Raises:
      ValueError: it selects none.

    >>> chosen_tensors("quantize", {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, None)
    ['kernel']
    """

    def wanted(name: str, leaf: Any) -> bool:
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size):
            return False
        if include is None:
            return len(leaf.shape) >= 2 and name.rpartition("/")[2] not in ("bias", "scale")
        return re.search(include, name) is not None if isinstance(include, str) else bool(include(name, leaf))

    named = by_path(params)
    if chosen := [name for name, leaf in named.items() if wanted(name, leaf)]:
        return chosen
    rule = "that has two or more axes" if include is None else f"that include={include!r} is true of"
    raise ValueError(
        f"{what}: expected a floating-point tensor {rule}, got none. Select tensors with include=, from: "
        f"{checks.describe(named) or 'none'}."
    )
