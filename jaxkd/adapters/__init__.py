"""Adapters from model libraries to the `Model` contract, and wrappers of models.

================================  ===================================================================================
`linen`                           adapter of a Flax linen module, with taps
`nnx`                             adapter of a Flax nnx module or its constructor, with taps
`plain`                           adapter of a pair ``(init, apply)`` of functions
`variables`                       converts linen's dict, an nnx module or `Variables` to `Variables`
`accumulate`                      runs a model on micro-batches, with the gradients of the whole batch
`precision`                       computes in bfloat16, with parameters and gradients in float32
`quantised`                       rounds weights to 1 to 8 bits, with straight-through gradients
`learned_points`                  learns the values that a trained model's weights are rounded to; `quantise`,
                                  `quantise_to` and `initial_points` are the functions of parameters
`remat`                           recomputes activations in the backward pass instead of storing them
`group`, `copies`                 combine several models into one: any architectures, or one mapped over its copies
`member`, `replace_member`        extract or replace one model's variables
`views`                           runs a model on further views of each example: a distortion, a partner
`reading`                         makes a model read other entries of the batch: another modality
`with_outputs`                    adds outputs computed from a model's other outputs
`select_classes`, `place_classes` select the logits of some classes; expand logits of some classes to all
`flow`, `Mix`, `student_alone`    mix teachers' layers into a student's; extract the plain student
`with_batch_statistics`           adds the distance of a batch from BatchNorm statistics; `watched` for nnx
`with_exits`                      adds classifiers at a model's taps, each an `Exit`: early exits, branches
`with_input_gradient`             adds the gradient of a logit by the input
`with_projected_input_gradient`   adds the gradient of a random projection of the logits by the input
================================  ===================================================================================
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx as _nnx

from jaxkd.adapters import flax_linen, flax_nnx
from jaxkd.adapters.accumulate import accumulate
from jaxkd.adapters.batch_statistics import watched, with_batch_statistics
from jaxkd.adapters.exits import Exit, with_exits
from jaxkd.adapters.flax_linen import linen
from jaxkd.adapters.flax_nnx import nnx_module as nnx
from jaxkd.adapters.flow import Mix, flow, student_alone
from jaxkd.adapters.functions import plain
from jaxkd.adapters.group import copies, group, member, replace_member
from jaxkd.adapters.input_gradients import with_input_gradient, with_projected_input_gradient
from jaxkd.adapters.outputs import place_classes, select_classes, with_outputs
from jaxkd.adapters.precision import precision
from jaxkd.adapters.quantised import initial_points, learned_points, quantise, quantise_to, quantised
from jaxkd.adapters.remat import remat
from jaxkd.adapters.views import reading, views
from jaxkd.normalization import mapped_axis
from jaxkd.types import Variables

__all__ = [
    "Exit",
    "Mix",
    "accumulate",
    "copies",
    "flow",
    "group",
    "initial_points",
    "learned_points",
    "linen",
    "mapped_axis",
    "member",
    "nnx",
    "place_classes",
    "plain",
    "precision",
    "quantise",
    "quantise_to",
    "quantised",
    "reading",
    "remat",
    "replace_member",
    "select_classes",
    "student_alone",
    "variables",
    "views",
    "watched",
    "with_batch_statistics",
    "with_exits",
    "with_input_gradient",
    "with_outputs",
    "with_projected_input_gradient",
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
        return source
    if isinstance(source, _nnx.Module | _nnx.State):
        return flax_nnx.variables_of(source)
    if isinstance(source, Mapping) and "params" in source:
        return flax_linen.variables_of(source)
    raise TypeError(
        "variables: expected Variables(params, state), linen's {'params': ..., ...} or an nnx module, got "
        f"{type(source).__name__}. Wrap bare parameters as Variables(params)."
    )
