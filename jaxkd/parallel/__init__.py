"""Placement: the same pure step on one device, on all of them, or over a mesh. The same call, the same numbers.

================================  ==========================================================================
`jit`                             one device, or wherever the arrays are
`pmap`                            every local device: replicated state, each device its share of the batch
`shard`                           a mesh: the compiler partitions one global program
================================  ==========================================================================

Each returns a `Placed`: ``init``, ``step`` and ``evaluate`` as a `jaxkd.Distiller` has them, compiled, and callable
itself as the step. The state given to a step is donated: use the one it returns.
"""

from jaxkd.parallel.placement import Placed, jit, pad, pmap, shard

__all__ = ["Placed", "jit", "pad", "pmap", "shard"]
