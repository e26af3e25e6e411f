"""Placement of a pure step on one device, on all devices, or over a mesh.

The results are equal up to rounding.

================================  ==========================================================================
`jit`                             one device, or the devices of the arguments
`pmap`                            all devices: replicated state, and a share of the batch on each device
`shard`                           a mesh: the compiler partitions one global program
`fully_sharded`                   rule for `shard`: each device keeps its part of every large array
`pad`                             pads a batch to a multiple by masked copies of its last example
`batch_placer`                    function that places the batches of one input for a step
`replicated_arrays`               arrays of a resident input, on every device of a state
`check_spans_hosts`               raises if a state of several hosts is on one host only
================================  ==========================================================================

Each of the first three returns a `Placed`: a `jaxkd.Distiller` with compiled ``init``, ``step`` and ``evaluate``, which
is itself callable as the step. The state given to a step is donated: use the one that it returns.
"""

from jaxkd.parallel._batches import pad
from jaxkd.parallel._mesh import check_spans_hosts, replicated_arrays
from jaxkd.parallel._placement import Placed, batch_placer, jit, pmap, shard
from jaxkd.parallel._rules import fully_sharded

__all__ = [
    "Placed",
    "batch_placer",
    "check_spans_hosts",
    "fully_sharded",
    "jit",
    "pad",
    "pmap",
    "replicated_arrays",
    "shard",
]
