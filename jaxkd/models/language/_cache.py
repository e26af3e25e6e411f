"""Keys and values of earlier tokens, for decoding token by token."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.models._attention import KeysValues


class KVCache(NamedTuple):
    """Keys and values of the tokens so far, with room for more.

    Every array but ``size`` has the batch first, so that examples can be selected with `jax.tree.map`.

    Attributes:
      keys: of each layer ``[batch, slots, key_value_heads, features]``, turned by their positions.
      values: of each layer, of the same shape.
      mask: ``bool[batch, slots]``, True for slots that hold an unmasked token.
      size: number of slots that are filled, int32; equal for all examples.
    """

    keys: tuple[Any, ...]
    values: tuple[Any, ...]
    mask: Any
    size: Any


class Recorder:
    """Keeps the keys and values of a forward pass, padded to a number of slots."""

    def __init__(self, slots: int) -> None:
        """Starts without any layer."""
        self.slots, self.kept = slots, list[KeysValues]()

    def __call__(self, own: KeysValues) -> KeysValues:
        """Keeps one layer's keys and values, and returns them."""
        room = ((0, 0), (0, self.slots - own[0].shape[1]), (0, 0), (0, 0))
        self.kept.append((jnp.pad(own[0], room), jnp.pad(own[1], room)))
        return own


class Extender:
    """Appends the keys and values of a forward pass to those of a cache."""

    def __init__(self, cache: KVCache) -> None:
        """Starts at the cache's first layer."""
        self.cache, self.kept = cache, list[KeysValues]()

    def __call__(self, own: KeysValues) -> KeysValues:
        """Appends one layer's keys and values, and returns all of that layer."""
        layer = len(self.kept)
        start = (0, self.cache.size, 0, 0)
        earlier = self.cache.keys[layer], self.cache.values[layer]
        joined = [jax.lax.dynamic_update_slice(old, new, start) for old, new in zip(earlier, own, strict=True)]
        self.kept.append((joined[0], joined[1]))
        return self.kept[-1]


def cache_of(kept: list[KeysValues], mask: Any, size: Any) -> KVCache:
    """Returns the cache of what a `Recorder` or an `Extender` kept."""
    keys, values = zip(*kept, strict=True)
    return KVCache(tuple(keys), tuple(values), mask, size)
