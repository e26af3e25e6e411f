"""Sorted integers in few bits: exact, in the stated number of bytes, and in the stated order of bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.cache.codecs import _bits


def read_slowly(packed, count, low):
    """Reads the format of the module's docstring, bit by bit."""
    bits = [byte >> place & 1 for byte in packed.tolist() for place in range(8)]
    lows = [sum(bits[i * low + place] << place for place in range(low)) for i in range(count)]
    set_bits = [place for place, bit in enumerate(bits[count * low :]) if bit]
    assert len(set_bits) == count
    return [(place - i << low) + lows[i] for i, place in enumerate(set_bits)]


@pytest.mark.parametrize(
    ("count", "universe", "low"), [(1, 1, 0), (1, 2**30, 24), (7, 1000, 7), (40, 40, 0), (50, 16 * 131_072, 15)]
)
def test_numbers_are_restored_and_lie_in_the_format(count, universe, low):
    rng = np.random.default_rng(count)
    rows = [np.sort(rng.integers(0, universe, count)) for _ in range(20)]
    numbers = np.stack([*rows, np.zeros(count), np.full(count, universe - 1)]).astype(np.int32).reshape(2, 11, count)
    packed = jax.jit(lambda x: _bits.pack_sorted(x, universe))(numbers)
    assert packed.shape == (2, 11, _bits.bytes_of_sorted(count, universe)) and packed.dtype == jnp.uint8
    np.testing.assert_array_equal(jax.jit(lambda x: _bits.unpack_sorted(x, count, universe))(packed), numbers)
    assert read_slowly(np.asarray(packed)[0, 3], count, low) == numbers[0, 3].tolist()


@pytest.mark.parametrize(("count", "universe"), [(50, 16 * 131_072), (128, 64 * 131_072), (50, 131_072), (3, 10**6)])
def test_the_size_is_that_of_elias_and_fano(count, universe):
    assert _bits.bytes_of_sorted(count, universe) <= np.ceil(count * (2 + np.ceil(np.log2(universe / count))) / 8)
