"""Sorted integers in few bits, and back: the code of Elias and Fano.

Of each number the lowest bits are stored as they are. The rest, which ascends, is stored in one run of bits: bit
``rest_i + i`` is set for the i-th number. For n numbers below U both together take about ``n (2 + log2(U / n))`` bits,
at most half a bit for each number more than the logarithm of the number of such sets asks for. The position of
everything but the set bits is known beforehand, so that a compiled program decodes all numbers of all rows at once.

Bits are counted from the lowest of each byte. How the bits are divided is part of the format of a cache.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from jaxkd.types import Array

LARGEST_UNIVERSE = 2**31 - 1
_MOST_LOW_BITS = 24  # with an offset in the byte of up to 7 they lie within four bytes


def _division(count: int, universe: int) -> tuple[int, int]:
    """Returns the number of low bits of each number, and of bits of the run."""

    def run(low: int) -> int:
        return ((universe - 1) >> low) + count

    low = min(range(_MOST_LOW_BITS + 1), key=lambda low: count * low + run(low))
    return low, run(low)


def bytes_of_sorted(count: int, universe: int) -> int:
    """Returns the size in bytes of sorted numbers below ``universe``.

    >>> bytes_of_sorted(50, 128_256)
    83
    """
    low, run = _division(count, universe)
    return -(-(count * low + run) // 8)


def pack_sorted(numbers: Array, universe: int) -> Array:
    """Returns ascending integers from 0 to ``universe − 1`` as bytes.

    Equal numbers are allowed.

    >>> pack_sorted(jnp.array([[3, 3, 700]]), 1000)
    Array([[  3,   3, 188,  19]], dtype=uint8)
    """
    count, rank = numbers.shape[-1], numbers.ndim
    low, run = _division(count, universe)
    numbers = numbers.astype(jnp.int32)
    shifts = _last(np.arange(low, dtype=np.int32), rank + 1)
    lowest = ((numbers[..., None] >> shifts) & 1).reshape(*numbers.shape[:-1], count * low)
    places = (numbers >> low) + _last(np.arange(count, dtype=np.int32), rank)
    rest = jnp.put_along_axis(jnp.zeros((*numbers.shape[:-1], run), jnp.int32), places, 1, axis=-1, inplace=False)
    return jnp.packbits(jnp.concatenate([lowest, rest], axis=-1).astype(jnp.uint8), axis=-1, bitorder="little")


def unpack_sorted(packed: Array, count: int, universe: int) -> Array:
    """Returns the int32 numbers ``[..., count]`` that `pack_sorted` packed.

    >>> unpack_sorted(pack_sorted(jnp.array([[3, 3, 700]]), 1000), 3, 1000)
    Array([[  3,   3, 700]], dtype=int32)
    """
    rank = packed.ndim
    low, run = _division(count, universe)
    offsets = np.arange(count) * low
    # Four bytes from the first of each number. The last may lie behind the end, and its bits are then cut off.
    window = sum(
        packed[..., np.minimum((offsets >> 3) + place, packed.shape[-1] - 1)].astype(jnp.uint32) << np.uint32(8 * place)
        for place in range(4)
    )
    lowest = (jnp.asarray(window) >> _last((offsets & 7).astype(np.uint32), rank)) & np.uint32(2**low - 1)

    first = count * low
    bits = jnp.unpackbits(packed[..., first // 8 :], axis=-1, bitorder="little")[..., first % 8 : first % 8 + run]
    # The i-th set bit: each set bit is scattered to its number i, the others to one place more, which is cut off.
    number = jnp.where(bits == 1, jnp.cumsum(bits, axis=-1, dtype=jnp.int32) - 1, count)
    places = jnp.broadcast_to(_last(np.arange(run, dtype=np.int32), rank), number.shape)
    places = jnp.put_along_axis(
        jnp.zeros((*packed.shape[:-1], count + 1), jnp.int32), number, places, axis=-1, inplace=False
    )
    rest = places[..., :count] - _last(np.arange(count, dtype=np.int32), rank)
    return (rest << low) | lowest.astype(jnp.int32)


def _last(values: np.ndarray, rank: int) -> np.ndarray:
    """Returns a vector as the last of ``rank`` axes."""
    return values.reshape((1,) * (rank - 1) + (-1,))
