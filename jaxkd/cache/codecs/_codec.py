"""The contract of a codec, and arithmetic that several codecs share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.types import Array

MOST_KEPT = 2**16
"""Largest number of classes or draws of a row."""

_FLOATS = ("float16", "bfloat16", "float32")


class Codec(NamedTuple):
    """Encoding of one teacher output, built by the functions of this package.

    Attributes:
      settings: name and arguments of the codec, JSON-serializable; part of the identity of a cache.
      encode: ``(output [batch, ...], key=None) -> {field: array [batch, ...]}``. ``key`` has a PRNG key for each
        example and view ``[batch]``, for a codec that draws.
      decode: ``({field: array [batch, ...]}, shape of one example's output) -> {suffix: array [batch, ...]}``. The
        empty suffix is the output itself, float32; a codec from which it cannot be restored has none.
      storable: ``(output) -> bool [batch]``: True for examples whose values the codec can represent.
      masked: whether rows of tokens that ``batch["mask"]`` excludes are left out of the files, where an output is
        ``[batch, tokens, features]`` and the mask ``[batch, tokens]``.
    """

    settings: Mapping[str, Any]
    encode: Callable[..., dict[str, Array]]
    decode: Callable[[Mapping[str, Array], tuple[int, ...]], dict[str, Array]]
    storable: Callable[[Array], Array]
    masked: bool = False


def example_keys(index: Array, view: Array) -> Array:
    """Returns a PRNG key for each example and view ``[batch]``.

    It depends on neither the batch nor the default generator.

    >>> example_keys(jnp.array([7, 8]), jnp.array([0, 0])).shape
    (2,)
    """
    root = jax.random.key(0, impl="threefry2x32")
    return jax.vmap(lambda index, view: jax.random.fold_in(jax.random.fold_in(root, view), index))(index, view)


def kept_number(codec: str, name: str, value: int) -> None:
    """Raises unless a number of classes or draws of a row is in range."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_KEPT:
        raise ValueError(f"{codec}: expected {name} of at least 1, and at most {MOST_KEPT}, got {value}.")


def float_dtype(codec: str, dtype: str) -> Any:
    """Returns the floating-point dtype of this name.

    Raises:
      ValueError: a codec cannot store it.
    """
    if dtype not in _FLOATS:
        raise ValueError(f"{codec}: expected a dtype of {', '.join(_FLOATS)}, got {dtype!r}.")
    return jnp.dtype(dtype)


def rounded(x: Array, dtype: Any) -> Array:
    """Rounds to a dtype; finite values stay finite."""
    largest = float(jnp.finfo(dtype).max)
    x = x.astype(jnp.float32)
    return jnp.where(jnp.isinf(x), x, jnp.clip(x, -largest, largest)).astype(dtype)


def row_size(codec: str, x: Array) -> int:
    """Returns the size of the last axis.

    Raises:
      ValueError: there is no such axis beside the batch.
    """
    if x.ndim < 2:
        raise ValueError(f"{codec}: expected [batch, ..., features], got {x.dtype}{list(x.shape)}. Use full().")
    return int(x.shape[-1])


def every(valid: Array) -> Array:
    """Reduces ``[batch, ...]`` to True for the examples that are True everywhere."""
    return jnp.all(valid, axis=tuple(range(1, valid.ndim)))


def no_nan(x: Array) -> Array:
    """Returns True for the examples without NaN and ``+inf``."""
    return every(~jnp.isnan(x) & (x != jnp.inf))


def some_class(x: Array) -> Array:
    """Returns True for the examples of which every row has a softmax."""
    return no_nan(x) & every(jnp.any(x > -jnp.inf, axis=-1))
