"""Placement: the same pure step on one device, on all of them, or over a mesh. The same call, the same numbers.

================================  ==========================================================================
`jit`                             one device, or wherever the arrays are
`pmap`                            every device: replicated state, each device its share of the batch
`shard`                           a mesh: the compiler partitions one global program
`fully_sharded`                   a rule for `shard`: each device keeps its part of every large array
`pad`                             a batch that divides, by masked copies of its last example
================================  ==========================================================================

Each of the first three returns a `Placed`: ``init``, ``step`` and ``evaluate`` as a `jaxkd.Distiller` has them,
compiled, and callable itself as the step. The state given to a step is donated: use the one it returns.
"""

from jaxkd.parallel.batches import pad
from jaxkd.parallel.placement import Placed, jit, pmap, shard
from jaxkd.parallel.rules import fully_sharded

__all__ = ["Placed", "fully_sharded", "jit", "pad", "pmap", "shard"]
