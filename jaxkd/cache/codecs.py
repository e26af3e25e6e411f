"""Codecs: what of a teacher's output is kept, in how many bits, and what comes back.

A codec is chosen for each output: ``keep={"logits": codecs.top_k(8), "stage2": codecs.eight_bit()}``. Encoding runs on
the device as part of the program that evaluates the teacher, decoding as part of the training step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.types import Array

__all__ = ["Codec", "eight_bit", "from_settings", "full", "top_k"]

_FLOATS = ("float16", "bfloat16", "float32")


class Codec(NamedTuple):
    """A way to keep one output of a teacher; `full`, `eight_bit` and `top_k` make them.

    Attributes:
      settings: what it is, as JSON can hold it; caches with different ones are different.
      encode: ``(output [batch, ...]) -> {field: array [batch, ...]}``.
      decode: ``({field: array [batch, ...]}, shape of one example's output) -> {suffix: array [batch, ...]}``. The
        empty suffix is the output itself, float32.
      storable: ``(output) -> bool [batch]``: which examples can be kept at all.
    """

    settings: Mapping[str, Any]
    encode: Callable[[Array], dict[str, Array]]
    decode: Callable[[Mapping[str, Array], tuple[int, ...]], dict[str, Array]]
    storable: Callable[[Array], Array]


def full(dtype: str = "float16") -> Codec:
    """Every number, rounded to the nearest of a floating-point type.

    A float16 is within a factor ``1 ± 2⁻¹¹`` of the original (above 6e-5), a bfloat16 within ``1 ± 2⁻⁸``, and a float32
    is the original. What is finite stays so: beyond ±65504, float16 keeps ±65504. ``-inf`` (an excluded class) is kept.

    Args:
      dtype: ``"float16"``, ``"bfloat16"`` or ``"float32"``.

    Returns:
      A `Codec` of 2 or 4 bytes a number. NaN and ``+inf`` cannot be kept.

    Raises:
      ValueError: another dtype.

    >>> kept = full("float16").encode(jnp.array([[1.0001, -1e9, -jnp.inf]]))
    >>> full("float16").decode(kept, (3,))[""]
    Array([[ 1.000e+00, -6.550e+04,       -inf]], dtype=float32)
    """
    stored = _float("full", dtype)

    def decode(fields: Mapping[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
        del shape
        return {"": fields["values"].astype(jnp.float32)}

    return Codec({"codec": "full", "dtype": stored.name}, lambda x: {"values": _rounded(x, stored)}, decode, _no_nan)


def eight_bit() -> Codec:
    """Eight bits a number: ``x ≈ low + scale · q`` with q from 0 to 255, for each row of the last axis on its own.

    ``low`` is the row's minimum and ``scale = (max − min) / 255``, so no number is off by more than half a scale,
    ``(max − min) / 510`` of its row, beside float32 rounding. A row is the classes of one example, the channels of one
    position of a feature map, or the features of one token.

    Returns:
      A `Codec` of 1 byte a number and 8 a row. Only what is finite can be kept.

    >>> kept = eight_bit().encode(jnp.array([[0.0, 1.0, 2.55]]))
    >>> kept["values"].dtype.name, eight_bit().decode(kept, (3,))[""].round(4)
    ('uint8', Array([[0.  , 1.  , 2.55]], dtype=float32))
    """

    def encode(x: Array) -> dict[str, Array]:
        _rows("eight_bit", x)
        x = x.astype(jnp.float32)
        low, high = jnp.min(x, axis=-1), jnp.max(x, axis=-1)
        scale = (high - low) / 255
        steps = (x - low[..., None]) / jnp.where(scale > 0, scale, 1)[..., None]
        return {"values": jnp.clip(jnp.round(steps), 0, 255).astype(jnp.uint8), "low": low, "scale": scale}

    def decode(fields: Mapping[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
        del shape
        return {"": fields["low"][..., None] + fields["scale"][..., None] * fields["values"].astype(jnp.float32)}

    return Codec({"codec": "eight_bit"}, encode, decode, lambda x: _each(jnp.isfinite(x)))


def top_k(k: int, dtype: str = "float16") -> Codec:
    """The k largest logits with their classes, and the mass of all the others as one number.

    Kept are the logits as they are, ``z_1 ≥ … ≥ z_k``, their indices in the smallest unsigned type that holds every
    class, and ``r = log Σ_others exp(z)`` in float32. What comes back, with ``Z = logaddexp(logsumexp(z_1…z_k), r)``:

    - ``logits/log_probs``, ``z − Z``, and ``logits/indices``: what `jaxkd.losses.top_k_kl` takes. Their mass and the
      tail's, ``logits/log_tail = r − Z``, add up to 1.
    - ``logits``: all classes; those not kept have ``r − log(classes − k)`` each, the tail's mass spread evenly.

    At temperature 1 the probabilities of the k classes and the tail's mass are the teacher's, up to the rounding to
    ``dtype``. At another temperature the k classes keep their exact ratios, but the tail's mass is only that of the
    even spread: how it changes with the temperature depends on what was not kept.

    Args:
      k: how many classes to keep.
      dtype: of the logits, ``"float16"``, ``"bfloat16"`` or ``"float32"``.

    Returns:
      A `Codec` for ``[..., classes]``. NaN and ``+inf`` cannot be kept.

    Raises:
      ValueError: k is not positive, or another dtype; when it encodes: there are fewer than k classes.

    >>> kept = top_k(2, "float32").encode(jnp.log(jnp.array([[0.1, 0.5, 0.1, 0.3]])))
    >>> kept["indices"], jnp.exp(kept["log_rest"]).round(4)
    (Array([[1, 3]], dtype=uint8), Array([0.2], dtype=float32))
    >>> jax.nn.softmax(top_k(2, "float32").decode(kept, (4,))[""]).tolist()
    [[0.1, 0.5, 0.1, 0.3]]
    """
    stored = _float("top_k", dtype)
    if k < 1:
        raise ValueError(f"top_k: expected k of at least 1, got {k}.")

    def encode(x: Array) -> dict[str, Array]:
        classes = _rows("top_k", x)
        if classes < k:
            raise ValueError(f"top_k: expected at least k = {k} classes, got {x.dtype}{list(x.shape)}. Take full().")
        x = x.astype(jnp.float32)
        values, indices = jax.lax.top_k(x, k)
        kept = jnp.put_along_axis(jnp.zeros(x.shape, bool), indices, True, axis=-1, inplace=False)
        rest = jax.nn.logsumexp(jnp.where(kept, -jnp.inf, x), axis=-1)
        narrow = np.min_scalar_type(classes - 1)
        return {"values": _rounded(values, stored), "indices": indices.astype(narrow), "log_rest": rest}

    def decode(fields: Mapping[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
        classes = shape[-1]
        values, rest = fields["values"].astype(jnp.float32), fields["log_rest"].astype(jnp.float32)
        indices = fields["indices"].astype(jnp.int32)
        spread = rest - np.float32(np.log(max(classes - k, 1)))
        logits = jnp.broadcast_to(spread[..., None], (*rest.shape, classes))
        logits = jnp.put_along_axis(logits, indices, values, axis=-1, inplace=False)
        total = jnp.logaddexp(jax.nn.logsumexp(values, axis=-1), rest)
        return {
            "": logits,
            "/log_probs": values - total[..., None],
            "/indices": indices,
            "/log_tail": rest - total,
        }

    return Codec({"codec": "top_k", "k": k, "dtype": stored.name}, encode, decode, _no_nan)


def from_settings(settings: Mapping[str, Any]) -> Codec:
    """The codec that a cache was written with.

    Args:
      settings: `Codec.settings`, as read from its manifest.

    Raises:
      ValueError: this version knows no such codec.

    >>> from_settings(top_k(5).settings).settings
    {'codec': 'top_k', 'k': 5, 'dtype': 'float16'}
    """
    makers: dict[str, Callable[..., Codec]] = {"full": full, "eight_bit": eight_bit, "top_k": top_k}
    arguments = dict(settings)
    name = arguments.pop("codec", None)
    if name not in makers:
        raise ValueError(
            f"the cache is written with the codec {name!r}, and this version of jaxkd knows {sorted(makers)}. Read it "
            "with the version that wrote it, or write it again."
        )
    return makers[name](**arguments)


def _float(codec: str, dtype: str) -> Any:
    if dtype not in _FLOATS:
        raise ValueError(f"{codec}: expected a dtype of {', '.join(_FLOATS)}, got {dtype!r}.")
    return jnp.dtype(dtype)


def _rounded(x: Array, dtype: Any) -> Array:
    largest = float(jnp.finfo(dtype).max)
    x = x.astype(jnp.float32)
    return jnp.where(jnp.isinf(x), x, jnp.clip(x, -largest, largest)).astype(dtype)


def _rows(codec: str, x: Array) -> int:
    if x.ndim < 2:
        raise ValueError(f"{codec}: expected [batch, ..., features], got {x.dtype}{list(x.shape)}. Take full().")
    return int(x.shape[-1])


def _each(valid: Array) -> Array:
    return jnp.all(valid, axis=tuple(range(1, valid.ndim)))


def _no_nan(x: Array) -> Array:
    return _each(~jnp.isnan(x) & (x != jnp.inf))
