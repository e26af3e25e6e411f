"""Wrappers of models: functions ``Model → Model``.

==================================  ===================================================================================
`accumulate`                        runs a model on micro-batches, with the gradients of the whole batch
`pretrained`                        begins with trained variables instead of random ones
`precision`                         computes in bfloat16, with parameters and gradients in float32
`remat`                             recomputes activations in the backward pass instead of storing them
`quantized`                         rounds weights to 1 to 8 bits, with straight-through gradients
`learned_codebook`                  learns the values that a trained model's weights are rounded to; `quantize`,
                                    `quantize_with` and `init_codebook` are the functions of parameters
`freeze`, `unfreeze`                keeps a part of a model as it is, with its statistics; returns the model's variables
`lora`, `with_base`, `merge_lora`   trains low-rank additions; adds the outputs of the trained model itself; their sum
`joint`, `replicate`                combine several models into one: any architectures, or one mapped over its replicas
`get_member`, `set_member`          extract or replace one model's variables
`views`                             runs a model on further views of each example: a distortion, a partner
`by_frame`                          makes a model of images read clips
`with_inputs`                       makes a model read other entries of the batch: another modality
`with_outputs`                      adds outputs computed from a model's other outputs
`select_classes`, `expand_classes`  select the logits of some classes; expand logits of some classes to all
`with_exits`                        adds classifiers at a model's taps, each an `Exit`: early exits, branches
`with_flow`, `FlowEdge`             mix teachers' layers into a student's
`extract_student`                   extracts the plain student of such a model
`with_batch_stat_distance`          adds the distance of a batch from BatchNorm statistics; `track_batch_stats` for nnx
`with_input_gradient`               adds the gradient of a logit by the input
`with_projected_input_gradient`     adds the gradient of a random projection of the logits by the input
==================================  ===================================================================================
"""

from jaxkd.wrappers._accumulate import accumulate
from jaxkd.wrappers._batch_stats import track_batch_stats, with_batch_stat_distance
from jaxkd.wrappers._early_exits import Exit, with_exits
from jaxkd.wrappers._flow import FlowEdge, extract_student, with_flow
from jaxkd.wrappers._freeze import freeze, unfreeze
from jaxkd.wrappers._input_gradients import with_input_gradient, with_projected_input_gradient
from jaxkd.wrappers._inputs import by_frame, views, with_inputs
from jaxkd.wrappers._joint import get_member, joint, replicate, set_member
from jaxkd.wrappers._lora import lora, merge_lora, with_base
from jaxkd.wrappers._outputs import expand_classes, select_classes, with_outputs
from jaxkd.wrappers._precision import precision
from jaxkd.wrappers._pretrained import pretrained
from jaxkd.wrappers._quantized import init_codebook, learned_codebook, quantize, quantize_with, quantized
from jaxkd.wrappers._remat import remat

__all__ = [
    "Exit",
    "FlowEdge",
    "accumulate",
    "by_frame",
    "expand_classes",
    "extract_student",
    "freeze",
    "get_member",
    "init_codebook",
    "joint",
    "learned_codebook",
    "lora",
    "merge_lora",
    "precision",
    "pretrained",
    "quantize",
    "quantize_with",
    "quantized",
    "remat",
    "replicate",
    "select_classes",
    "set_member",
    "track_batch_stats",
    "unfreeze",
    "views",
    "with_base",
    "with_batch_stat_distance",
    "with_exits",
    "with_flow",
    "with_input_gradient",
    "with_inputs",
    "with_outputs",
    "with_projected_input_gradient",
]
