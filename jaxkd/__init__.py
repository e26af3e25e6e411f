"""Knowledge distillation for JAX and Flax, composed of pure functions.

======================  ===================================================================================
`jaxkd.losses`          pure functions of arrays that return one value per example
`jaxkd.objectives`      losses bound to their inputs, possibly with parameters and state: `term`, `combine`
`jaxkd.adapters`        adapters from Flax linen, Flax nnx and plain functions to one `Model` contract
`jaxkd.wrappers`        functions from model to model: micro-batches, precision, quantization, early exits
`jaxkd.teachers`        sources of teacher outputs: frozen, averaged, ensembled, cached
`jaxkd.distillers`      `distill`, and functions from distiller to distiller: EMA, preprocessing, sweeps
`jaxkd.metrics`         metrics as (sum, count) pairs, merged before they are divided
`jaxkd.parallel`        the same step on one device, on all devices or on a mesh
`jaxkd.schemes`         distillation schemes: who teaches whom, and when
`jaxkd.cache`           teacher outputs on disk, computed once
`jaxkd.training`        the training loop, checkpoints, logs and exact resume
`jaxkd.weights`         trained weights in and out: safetensors, orbax, PyTorch, Hugging Face
======================  ===================================================================================

`jaxkd.data` and `jaxkd.models` hold data sets and a model zoo for experiments; no package in the table imports them.
Each package is imported when it is first used: ``import jaxkd`` and one loss read neither Flax nor the rest of jaxkd.
"""

import importlib as _importlib
from importlib import metadata as _metadata
from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

try:
    _unrelated = _Path(str(_metadata.distribution("jaxkd").locate_file("jaxkd"))).resolve()
except _metadata.PackageNotFoundError:
    pass
else:
    raise ImportError(
        f"jaxkd: the distribution 'jaxkd' (k-d trees for JAX), which is unrelated, is installed at {_unrelated} and "
        f"shares the import name with 'jaxkd-toolkit' at {_Path(__file__).parent}. Either may hide or overwrite the "
        "other's files. Run `pip uninstall jaxkd jaxkd-toolkit` and then `pip install jaxkd-toolkit`, or use an "
        "environment of its own for each."
    )

from jaxkd import types
from jaxkd.types import (
    DATA_AXIS,
    Context,
    Distiller,
    Mean,
    Model,
    Objective,
    ObjectiveOut,
    ObjectiveVars,
    Teacher,
    TrainState,
    Variables,
)

if _TYPE_CHECKING:
    from jaxkd import (
        adapters,
        cache,
        distillers,
        losses,
        metrics,
        objectives,
        parallel,
        schemes,
        teachers,
        training,
        weights,
        wrappers,
    )
    from jaxkd.distillers import distill
    from jaxkd.objectives import combine, term

try:
    __version__ = _metadata.version("jaxkd-toolkit")
except _metadata.PackageNotFoundError:  # used from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "DATA_AXIS",
    "Context",
    "Distiller",
    "ObjectiveOut",
    "ObjectiveVars",
    "Mean",
    "Model",
    "Objective",
    "Teacher",
    "TrainState",
    "Variables",
    "adapters",
    "cache",
    "combine",
    "distill",
    "distillers",
    "losses",
    "metrics",
    "objectives",
    "parallel",
    "schemes",
    "teachers",
    "term",
    "training",
    "types",
    "weights",
    "wrappers",
]

_FUNCTIONS = {"combine": "jaxkd.objectives", "distill": "jaxkd.distillers", "term": "jaxkd.objectives"}
_OTHERS = ("data", "dense", "models")  # packages that ``from jaxkd import *`` leaves out


def __getattr__(name: str) -> _Any:
    """Imports a package when it is first used."""
    if name in _FUNCTIONS:
        return getattr(_importlib.import_module(_FUNCTIONS[name]), name)
    if name in __all__ or name in _OTHERS:
        return _importlib.import_module(f"jaxkd.{name}")
    raise AttributeError(f"module 'jaxkd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_OTHERS})
