"""What the processes of one run agree on; with a single process, nothing is sent."""

from __future__ import annotations

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["barrier", "from_first"]


def barrier(name: str) -> None:
    """Waits until every process is here.

    Args:
      name: of the place, the same in all.

    >>> barrier("saved")
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def from_first(value: int) -> int:
    """What the first process says, in all of them.

    Args:
      value: a 32-bit integer; that of the other processes is not looked at.

    Returns:
      The first process's.

    >>> from_first(3)
    3
    """
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))
