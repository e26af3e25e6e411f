"""Arrays and barriers of several hosts; with a single process, nothing is sent."""

from __future__ import annotations

from typing import Any

import jax
from jax.experimental import multihost_utils

__all__ = ["barrier", "local"]


def barrier(name: str) -> None:
    """Waits until every process has reached this line."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def local(leaf: Any) -> Any:
    """Returns the whole array on this host, which can then run programs of its own."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    if leaf.is_fully_replicated:
        return leaf.addressable_data(0)
    return multihost_utils.process_allgather(leaf, tiled=True)
