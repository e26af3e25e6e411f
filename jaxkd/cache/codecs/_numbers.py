"""Every number of an output, in fewer bits: `full`, `eight_bit`."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from jaxkd.cache.codecs._codec import Codec, every, float_dtype, no_nan, rounded, row_size
from jaxkd.types import Array


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
    stored = float_dtype("full", dtype)

    def encode(x: Array, key: Array | None = None) -> dict[str, Array]:
        del key
        return {"values": rounded(x, stored)}

    def decode(fields: Mapping[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
        del shape
        return {"": fields["values"].astype(jnp.float32)}

    return Codec({"codec": "full", "dtype": stored.name}, encode, decode, no_nan)


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

    def encode(x: Array, key: Array | None = None) -> dict[str, Array]:
        del key
        row_size("eight_bit", x)
        x = x.astype(jnp.float32)
        low, high = jnp.min(x, axis=-1), jnp.max(x, axis=-1)
        scale = (high - low) / 255
        steps = (x - low[..., None]) / jnp.where(scale > 0, scale, 1)[..., None]
        return {"values": jnp.clip(jnp.round(steps), 0, 255).astype(jnp.uint8), "low": low, "scale": scale}

    def decode(fields: Mapping[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
        del shape
        return {"": fields["low"][..., None] + fields["scale"][..., None] * fields["values"].astype(jnp.float32)}

    return Codec({"codec": "eight_bit"}, encode, decode, lambda x: every(jnp.isfinite(x)))
