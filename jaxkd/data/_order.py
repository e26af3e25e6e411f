"""The order of an epoch: a shuffle computed per position, on device or host.

A stored permutation of a large set would have to be sorted in every epoch, outside the step, and sent to the device.
This one is computed for the positions of a batch only, in a few dozen integer operations each, as a pure function of
``(seed, epoch)``. So a step of a `jax.lax.scan` finds its batch from the step number alone, a run can return to any
step, seeds can be mapped over, and readers on several hosts agree without communication.

The permutation is a Feistel network over mixed radices (Black & Rogaway, "Ciphers with Arbitrary Finite Domains",
2002). A position is written as ``left + a * right``, with ``a`` about the square root of the size. Each round adds a
hash of one half to the other half; the round can be inverted, hence it permutes the ``a * b >= size`` numbers. The
fewer than ``a`` numbers past the end go through the network again until they fall inside (cycle walking).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ROUNDS = 16  # With 8 rounds, the 120 orders of five rows are measurably not equally likely.


def permutation(position: Any, *, num_examples: int, seed: Any, epoch: Any, xp: Any = jnp) -> Any:
    """Returns the rows at given positions of an epoch's shuffled order.

    Args:
      position: positions in the epoch, integers ``[batch]``, each in ``[0, size)``.
      num_examples: number of rows (static).
      seed: seed of the run, an integer in ``[0, 2**32)``; it may be traced, since a sweep maps over it.
      epoch: number of the epoch, an integer; it may be traced.
      xp: `jax.numpy`, or `numpy` to compute the same rows on the host.

    Returns:
      int32 rows ``[batch]``. Over all positions, every row of ``[0, size)`` occurs once.

    Raises:
      ValueError: the size is not between 1 and 2**31 - 1.

    >>> rows = permutation(jnp.arange(10), num_examples=10, seed=0, epoch=3)
    >>> sorted(rows.tolist()) == list(range(10))
    True
    >>> (rows == permutation(np.arange(10), num_examples=10, seed=0, epoch=3, xp=np)).all().item()
    True
    """
    if not 0 < num_examples < 2**31:
        raise ValueError(f"num_examples: expected 1 to {2**31 - 1} rows to shuffle, got {num_examples}.")
    arguments = xp.asarray(position).astype(np.uint32), as_uint32(seed, xp), as_uint32(epoch, xp)
    return _permute(*arguments, num_examples, xp) if xp is np else _permute_jitted(*arguments, num_examples)


def _permute(position: Any, seed: Any, epoch: Any, size: int, xp: Any = jnp) -> Any:
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    keys = _round_keys(seed, epoch)

    def once(x: Any) -> Any:
        left, right = x % np.uint32(a), x // np.uint32(a)
        for number in range(_ROUNDS):
            if number % 2 == 0:
                left = (left + hash_bits(right + keys[number]) % np.uint32(a)) % np.uint32(a)
            else:
                right = (right + hash_bits(left + keys[number]) % np.uint32(b)) % np.uint32(b)
        return left + np.uint32(a) * right

    def walk(carry: Any) -> Any:
        x, outside = carry
        x = xp.where(outside, once(x), x)
        return x, x >= np.uint32(size)

    carry = position, xp.ones(position.shape, dtype=bool)
    if xp is np:
        while carry[1].any():
            carry = walk(carry)
    else:
        carry = jax.lax.while_loop(lambda carry: carry[1].any(), walk, carry)
    return carry[0].astype(np.int32)


# Calls outside of any jit compile once per size.
_permute_jitted = jax.jit(_permute, static_argnums=(3,), static_argnames=("xp",))


def _round_keys(seed: Any, epoch: Any) -> Any:
    key = hash_bits(hash_bits(seed + np.uint32(0x9E3779B9)) ^ hash_bits(epoch + np.uint32(0x7F4A7C15)))
    return [hash_bits(key + np.uint32(0x9E3779B9 * (number + 1) % 2**32)) for number in range(_ROUNDS)]


def as_uint32(value: Any, xp: Any) -> Any:
    # The result has one axis, since NumPy warns when a scalar overflows, but not when an array does. A Python integer
    # of 2**31 or more does not fit the int32 to which JAX would convert it first.
    if isinstance(value, int | np.integer):
        return xp.asarray([int(value) % 2**32], dtype=np.uint32)
    return xp.asarray(value).astype(np.uint32).reshape(1)


def hash_bits(x: Any) -> Any:
    """MurmurHash3's finalizer: a bijection of uint32 that mixes all bits."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
