"""The order of an epoch: a shuffle that can be asked for any position, on the device and on the host alike.

A stored permutation of a large set would have to be sorted again every epoch, outside the step, and sent along. This
one is computed for the few positions that a batch needs, in a few dozen integer operations each, as a pure function
of ``(seed, epoch)``; so a step of a `jax.lax.scan` can find its batch from the step number alone, any step can be
gone back to, seeds can be mapped over, and readers on several hosts agree without talking to one another.

It is a Feistel network over mixed radices (Black & Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): a position
is written as ``left + a * right``, with ``a`` about the square root of the size, and each round adds a hash of one
half to the other, which can always be undone and so is a permutation of the ``a * b >= size`` numbers. The fewer than
``a`` numbers past the end are sent through again until they land inside (cycle walking).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ROUNDS = 16  # With 8, the 120 orders of five rows are measurably not equally likely; with 16 they are.


def permutation(position: Any, *, size: int, seed: Any, epoch: Any, xp: Any = jnp) -> Any:
    """The rows that stand at some positions of an epoch's shuffled order.

    Args:
      position: places in the epoch, integers ``[batch]``, each in ``[0, size)``.
      size: how many rows there are (static).
      seed: of the whole run; an integer in ``[0, 2**32)``, which may be traced (a sweep maps over it).
      epoch: the number of the pass, an integer; it may be traced.
      xp: `jax.numpy`, or `numpy` to compute the same numbers on the host.

    Returns:
      int32 rows ``[batch]``. Over all positions every row of ``[0, size)`` occurs once.

    Raises:
      ValueError: there are no rows, or more than 2**31 - 1.

    >>> rows = permutation(jnp.arange(10), size=10, seed=0, epoch=3)
    >>> sorted(rows.tolist()) == list(range(10))
    True
    >>> (rows == permutation(np.arange(10), size=10, seed=0, epoch=3, xp=np)).all().item()
    True
    """
    if not 0 < size < 2**31:
        raise ValueError(f"size: expected 1 to {2**31 - 1} rows to shuffle, got {size}.")
    arguments = xp.asarray(position).astype(np.uint32), _as_uint32(seed, xp), _as_uint32(epoch, xp)
    return _permute(*arguments, size, xp) if xp is np else _permute_jitted(*arguments, size)


def _permute(position: Any, seed: Any, epoch: Any, size: int, xp: Any = jnp) -> Any:
    a = math.isqrt(size - 1) + 1
    b = -(-size // a)
    keys = _round_keys(seed, epoch)

    def once(x: Any) -> Any:
        left, right = x % np.uint32(a), x // np.uint32(a)
        for number in range(_ROUNDS):
            if number % 2 == 0:
                left = (left + _hash(right + keys[number]) % np.uint32(a)) % np.uint32(a)
            else:
                right = (right + _hash(left + keys[number]) % np.uint32(b)) % np.uint32(b)
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


# Compiled once for each size, also where it is called outside of any jit.
_permute_jitted = jax.jit(_permute, static_argnums=(3,), static_argnames=("xp",))


def _round_keys(seed: Any, epoch: Any) -> Any:
    key = _hash(_hash(seed + np.uint32(0x9E3779B9)) ^ _hash(epoch + np.uint32(0x7F4A7C15)))
    return [_hash(key + np.uint32(0x9E3779B9 * (number + 1) % 2**32)) for number in range(_ROUNDS)]


def _as_uint32(value: Any, xp: Any) -> Any:
    # One-dimensional: NumPy warns when a scalar wraps around, and not when an array does. And a Python integer past
    # 2**31 does not fit the int32 that JAX would make of it on the way.
    if isinstance(value, int | np.integer):
        return xp.asarray([int(value) % 2**32], dtype=np.uint32)
    return xp.asarray(value).astype(np.uint32).reshape(1)


def _hash(x: Any) -> Any:
    """MurmurHash3's finaliser: a bijection of 32-bit integers in which every input bit moves every output bit."""
    x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return x ^ (x >> np.uint32(16))
