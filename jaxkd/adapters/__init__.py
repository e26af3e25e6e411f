"""Adapters from model libraries to the `Model` contract.

==================  ====================================================================================
`linen`             a Flax linen module, with taps
`nnx`               a Flax nnx module or its constructor, with taps
`plain`             a pair ``(init, apply)`` of functions
`variables`         converts linen's dict, an nnx module or `Variables` to `Variables`
`batch_norm_call`   arguments of a BatchNorm's call that a linen interceptor sees, for wrappers
==================  ====================================================================================

A tap is a name for a submodule's output, selected by its path, as ``"ResNetStage_1"`` or ``"encoder/blocks/3"`` (dots
work as well), or for an intermediate that the module sows, as ``"ResNetStage_1/preact"``. For a module with several
calls, ``"name#0"`` and ``"name#1"`` select one; under `nn.scan`, ``"name[2]"`` selects a layer. A replica is a part of
the batch, by default one device's share: see ``replicas=`` of `jaxkd.parallel.jit`.
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx as _nnx

from jaxkd.adapters import _flax_linen, _flax_nnx
from jaxkd.adapters._flax_linen import batch_norm_call, linen
from jaxkd.adapters._flax_nnx import nnx_module as nnx
from jaxkd.adapters._functions import plain
from jaxkd.types import TrainState, Variables

__all__ = [
    "batch_norm_call",
    "linen",
    "nnx",
    "plain",
    "variables",
]


def variables(source: Any) -> Variables:
    """Converts weights, in the form of any supported library, to `Variables`.

    Args:
      source: linen's ``{"params": ..., "batch_stats": ...}``, an nnx module or its `nnx.State`, or `Variables`.

    Raises:
      TypeError: the source has none of these forms.

    >>> variables({"params": {"w": 1}}).params
    {'w': 1}
    """
    if isinstance(source, Variables):
        return _flax_linen.unboxed(source)
    if isinstance(source, _nnx.Module | _nnx.State):
        return _flax_nnx.variables_of(source)
    if isinstance(source, Mapping) and "params" in source:
        return _flax_linen.variables_of(source)
    trained = isinstance(source, TrainState)
    cure = "Its student is `.student`." if trained else "Wrap bare parameters as Variables(params)."
    raise TypeError(
        "variables: expected Variables(params, state), linen's {'params': ..., ...} or an nnx module, got "
        f"{type(source).__name__}. {cure}"
    )
