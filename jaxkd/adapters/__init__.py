"""Adapters: a model library in, the `Model` contract out.

================================  ==========================================================================
`linen`                           a Flax linen module, with taps
`nnx`                             a Flax nnx module or its constructor, with taps
`plain`                           a pair ``(init, apply)`` of functions
`variables`                       weights as linen's dict, an nnx module or `Variables`, as `Variables`
`accumulate`                      a model that takes its batch in micro-batches: a large batch's gradients, in parts
`precision`                       a model that computes in bfloat16, with parameters and gradients in float32
`quantised`                       a model whose weights are rounded to 2, 4 or 8 bits, with straight-through gradients
`learned_points`                  a trained model of few values for each weight, and these values learned;
                                  `quantise`, `quantise_to` and `initial_points` are functions of parameters
`remat`                           a model whose activations are computed again instead of kept
`group`, `copies`                 several models as one: peers of any architectures, or of one, mapped over
`member`, `replace_member`        one model's variables out of those of several, and back
`views`                           a model run on further views of each example: a distortion, a partner
`reading`                         a model that reads other entries of the batch: another modality
`with_outputs`                    a model with outputs computed from its others
`select_classes`, `place_classes` logits of some of the classes, and logits of some as logits of all
`flow`, `Mix`, `student_alone`    a student into whose layers teachers' layers flow, and the student without them
`with_batch_statistics`           how far a batch is from a model's BatchNorm statistics; `watched` for nnx
`with_exits`                      classifiers at a model's taps, each an `Exit`: early exits, branches
`with_input_gradient`             a model with the gradient of a logit by its input as one more output
`with_projected_input_gradient`   the same of a random direction in the space of the logits
================================  ==========================================================================
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
    """Weights, as a library holds them, as `Variables`.

    Args:
      source: linen's ``{"params": ..., "batch_stats": ...}``, an nnx module or its `nnx.State`, or `Variables`.

    Raises:
      TypeError: it is none of these.

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
        f"{type(source).__name__}. Bare parameters are Variables(params)."
    )
