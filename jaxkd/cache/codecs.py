"""Codecs: lossy encodings of a teacher's output, with bounds on their error.

A codec is chosen for each output: ``codecs={"logits": codecs.top_k(8), "stage2": codecs.eight_bit()}``. Encoding runs
on the device as part of the program that evaluates the teacher, decoding as part of the training step.
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
    """Encoding of one teacher output; `full`, `eight_bit` and `top_k` build them.

    Attributes:
      settings: name and arguments of the codec, JSON-serializable; part of the identity of a cache.
      encode: ``(output [batch, ...]) -> {field: array [batch, ...]}``.
      decode: ``({field: array [batch, ...]}, shape of one example's output) -> {suffix: array [batch, ...]}``. The
        empty suffix is the output itself, float32.
      storable: ``(output) -> bool [batch]``: True for examples whose values the codec can represent.
    """

    settings: Mapping[str, Any]
    encode: Callable[[Array], dict[str, Array]]
    decode: Callable[[Mapping[str, Array], tuple[int, ...]], dict[str, Array]]
    storable: Callable[[Array], Array]


def full(dtype: str = "float16") -> Codec:
    """Stores every number, rounded to the nearest value of a floating-point type.

    A float16 is within a factor ``1 ± 2⁻¹¹`` of the original (above 6e-5), a bfloat16 within ``1 ± 2⁻⁸``, and a float32
    is the original. Finite values stay finite: float16 clips to ±65504. ``-inf`` (an excluded class) is preserved.

    Args:
      dtype: ``"float16"``, ``"bfloat16"`` or ``"float32"``.

    Returns:
      A `Codec` of 2 or 4 bytes per number. It rejects NaN and ``+inf``.

    Raises:
      ValueError: the dtype is none of these.

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
    """Stores 8 bits per number, with an affine range for each row of the last axis.

    ``x ≈ low + scale · q`` with q from 0 to 255, the row's minimum ``low``, and ``scale = (max − min) / 255``. The
    error is at most half a scale, ``(max − min) / 510`` of the row, plus float32 rounding. A row is the classes of one
    example, the channels of one position of a feature map, or the features of one token.

    Returns:
      A `Codec` of 1 byte per number and 8 per row. It rejects values that are not finite.

    >>> kept = eight_bit().encode(jnp.array([[0.0, 1.0, 2.55]]))
    >>> kept["values"].dtype.name, eight_bit().decode(kept, (3,))[""].round(4)
    ('uint8', Array([[0.  , 1.  , 2.55]], dtype=float32))
    """

    def encode(x: Array) -> dict[str, Array]:
        _row_size("eight_bit", x)
        x = x.astype(jnp.float32)
        low, high = jnp.min(x, axis=-1), jnp.max(x, axis=-1)
        scale = (high - low) / 255
        steps = (x - low[..., None]) / jnp.where(scale > 0, scale, 1)[..., None]
        return {"values": jnp.clip(jnp.round(steps), 0, 255).astype(jnp.uint8), "low": low, "scale": scale}

    def decode(fields: Mapping[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
        del shape
        return {"": fields["low"][..., None] + fields["scale"][..., None] * fields["values"].astype(jnp.float32)}

    return Codec({"codec": "eight_bit"}, encode, decode, lambda x: _every(jnp.isfinite(x)))


def top_k(k: int, dtype: str = "float16") -> Codec:
    """Stores the k largest logits with their classes, and the log mass of the tail.

    Stored are the logits ``z_1 ≥ … ≥ z_k``, their indices in the smallest unsigned type that holds every class, and
    ``r = log Σ_others exp(z)`` in float32. Decoding returns, with ``Z = logaddexp(logsumexp(z_1…z_k), r)``:

    - ``logits/log_probs``, ``z − Z``, and ``logits/indices``: the arguments of `jaxkd.losses.top_k_kl`. Their mass and
      the tail's, ``logits/log_tail = r − Z``, add up to 1.
    - ``logits``: all classes; those of the tail have ``r − log(classes − k)`` each, which spreads its mass evenly.

    At temperature 1 the probabilities of the k classes and the tail's mass are the teacher's, up to the rounding to
    ``dtype``. At another temperature the k classes keep their exact ratios, but the tail's mass is only that of the
    even spread: its true value depends on the logits that were dropped.

    Args:
      k: number of classes to store.
      dtype: dtype of the stored logits, ``"float16"``, ``"bfloat16"`` or ``"float32"``.

    Returns:
      A `Codec` for ``[..., classes]``. It rejects NaN and ``+inf``.

    Raises:
      ValueError: k is not positive, or the dtype is none of these; from ``encode``: there are fewer than k classes.

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
        classes = _row_size("top_k", x)
        if classes < k:
            raise ValueError(f"top_k: expected at least k = {k} classes, got {x.dtype}{list(x.shape)}. Use full().")
        x = x.astype(jnp.float32)
        values, indices = jax.lax.top_k(x, k)
        stored_classes = jnp.put_along_axis(jnp.zeros(x.shape, bool), indices, True, axis=-1, inplace=False)
        # Summed over the tail itself: subtracting the mass of the k classes from the total would cancel a small tail.
        rest = jax.nn.logsumexp(jnp.where(stored_classes, -jnp.inf, x), axis=-1)
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
    """Builds the codec that a cache was written with.

    Args:
      settings: `Codec.settings`, as read from the manifest.

    Raises:
      ValueError: this version has no such codec.

    >>> from_settings(top_k(5).settings).settings
    {'codec': 'top_k', 'k': 5, 'dtype': 'float16'}
    """
    makers: dict[str, Callable[..., Codec]] = {"full": full, "eight_bit": eight_bit, "top_k": top_k}
    arguments = dict(settings)
    name = arguments.pop("codec", None)
    if name not in makers:
        raise ValueError(
            f"expected a cache written with one of the codecs {sorted(makers)} of this version of jaxkd, got {name!r}. "
            "Read it with the version that wrote it, or write it again."
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


def _row_size(codec: str, x: Array) -> int:
    if x.ndim < 2:
        raise ValueError(f"{codec}: expected [batch, ..., features], got {x.dtype}{list(x.shape)}. Use full().")
    return int(x.shape[-1])


def _every(valid: Array) -> Array:
    return jnp.all(valid, axis=tuple(range(1, valid.ndim)))


def _no_nan(x: Array) -> Array:
    return _every(~jnp.isnan(x) & (x != jnp.inf))
