"""Adapters from model libraries to the `Model` contract, and wrappers of models.

================================  ===================================================================================
`linen`                           adapter of a Flax linen module, with taps
`nnx`                             adapter of a Flax nnx module or its constructor, with taps
`plain`                           adapter of a pair ``(init, apply)`` of functions
`variables`                       converts linen's dict, an nnx module or `Variables` to `Variables`
`accumulate`                      runs a model on micro-batches, with the gradients of the whole batch
`precision`                       computes in bfloat16, with parameters and gradients in float32
`quantized`                       rounds weights to 1 to 8 bits, with straight-through gradients
`learned_codebook`                  learns the values that a trained model's weights are rounded to; `quantize`,
                                  `quantize_with` and `init_codebook` are the functions of parameters
`remat`                           recomputes activations in the backward pass instead of storing them
`joint`, `replicate`                 combine several models into one: any architectures, or one mapped over its copies
`get_member`, `set_member`        extract or replace one model's variables
`views`                           runs a model on further views of each example: a distortion, a partner
`with_inputs`                         makes a model read other entries of the batch: another modality
`with_outputs`                    adds outputs computed from a model's other outputs
`select_classes`, `expand_classes` select the logits of some classes; expand logits of some classes to all
`with_flow`, `FlowEdge`, `extract_student`    mix teachers' layers into a student's; extract the plain student
`with_batch_stat_distance`           adds the distance of a batch from BatchNorm statistics; `track_batch_stats` for nnx
`with_exits`                      adds classifiers at a model's taps, each an `Exit`: early exits, branches
`with_input_gradient`             adds the gradient of a logit by the input
`with_projected_input_gradient`   adds the gradient of a random projection of the logits by the input
================================  ===================================================================================
"""

from collections.abc import Mapping
from typing import Any

from flax import nnx as _nnx

from jaxkd.adapters import _flax_linen, _flax_nnx
from jaxkd.wrappers import accumulate
from jaxkd.wrappers import track_batch_stats, with_batch_stat_distance
from jaxkd.wrappers import Exit, with_exits
from jaxkd.adapters._flax_linen import linen
from jaxkd.adapters._flax_nnx import nnx_module as nnx
from jaxkd.wrappers import FlowEdge, with_flow, extract_student
from jaxkd.adapters._functions import plain
from jaxkd.wrappers import replicate, joint, get_member, set_member
from jaxkd.wrappers import with_input_gradient, with_projected_input_gradient
from jaxkd.wrappers import expand_classes, select_classes, with_outputs
from jaxkd.wrappers import precision
from jaxkd.wrappers import init_codebook, learned_codebook, quantize, quantize_with, quantized
from jaxkd.wrappers import remat
from jaxkd.wrappers import with_inputs, views
from jaxkd._core.axes import mapped_axis
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
    "quantize",
    "quantize_with",
    "quantized",
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
