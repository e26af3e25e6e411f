"""jaxkd: knowledge distillation for JAX and Flax, from pure functions.

======================  =====================================================================================
`jaxkd.losses`          pure functions of arrays, one value per example
`jaxkd.objectives`      losses bound to where their inputs are; they may own parameters: `term`, `combine`
`jaxkd.adapters`        Flax linen, Flax nnx or plain functions in, one `Model` contract out
`jaxkd.teachers`        where teacher outputs come from
`jaxkd.training`        `distill`, the loop, checkpoints, metrics
`jaxkd.schemes`         what is composed of several distillations: `staged`
`jaxkd.parallel`        the same step on one device, all devices, or a mesh
`jaxkd.cache`           teacher outputs on disk, computed once
`jaxkd.weights`         trained weights out, to serve without the toolkit, and in: orbax, safetensors, PyTorch
======================  =====================================================================================

`jaxkd.data` and `jaxkd.models` hold inputs and a model zoo for experiments; nothing of the above imports them.
"""

from importlib import metadata as _metadata

from jaxkd import adapters, cache, checks, losses, objectives, parallel, schemes, teachers, training, types, weights
from jaxkd.objectives import combine, term
from jaxkd.training.distill import distill
from jaxkd.types import (
    DATA_AXIS,
    Context,
    Distiller,
    LossOut,
    LossVars,
    Mean,
    Model,
    Objective,
    Teacher,
    TrainState,
    Variables,
)

try:
    __version__ = _metadata.version("jaxkd-toolkit")
except _metadata.PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "DATA_AXIS",
    "Context",
    "Distiller",
    "LossOut",
    "LossVars",
    "Mean",
    "Model",
    "Objective",
    "Teacher",
    "TrainState",
    "Variables",
    "adapters",
    "cache",
    "checks",
    "combine",
    "distill",
    "losses",
    "objectives",
    "parallel",
    "schemes",
    "teachers",
    "term",
    "training",
    "types",
    "weights",
]
