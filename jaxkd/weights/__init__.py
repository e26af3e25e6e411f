"""Saves trained weights for use without the toolkit, and loads weights.

==================================================  ==================================================================
`save_safetensors`, `load_safetensors`              one file of arrays by name
`save_orbax`, `load_orbax`                          a plain orbax directory; `load_orbax` reads any orbax checkpoint
`load_safetensors_metadata`, `load_orbax_metadata`  metadata saved with the weights
`save_program`, `load_program`                      the compiled model with its weights, to serve with JAX alone
`save_quantized`, `load_quantized`                  weights of 1 to 8 bits, packed
`quantized_size`, `QuantizedSize`                   the size of such a file, by parts
`load_run`                                          the student of a training run's directory
`fit_to`                                            arrays by name into a model, names and shapes checked
`fit_torch_to`, `load_torch`                        PyTorch's state dicts into a model; out of a file
`NUM_BATCHES_TRACKED`                               pattern of the BatchNorm counters, which Flax lacks
`torch_cifar`                                       the name map of any CIFAR model that `jaxkd.models` shares with
                                                    PyTorch distillation repositories
`torch_cifar_resnet`, `torch_wrn`, `torch_vgg`      the name map of a family, by depth
`torch_resnet50`, `torch_mobilenet_v2`,             the name map of one model
`torch_shufflenet_v1`, `torch_shufflenet_v2`
`load_hf`, `save_hf`                                a directory of a Hugging Face BERT, MobileBERT, GPT-2 or Llama, in
                                                    and out
`load_hf_config`                                    its `config.json`
`hf_bert`, `hf_gpt2`, `hf_llama`, `hf_mobilebert`,  names, layouts and ignored buffers of these models
`HuggingFace`
`drop_layers`, `prune_width`                        weights of a student of fewer layers, of a narrower one
`prune_channels`, `channel_groups`, `ChannelGroup`,  weights of any narrower network: its channels, by its program, and
`filter_norms`                                      their importance
`split_attention`, `split_lstm`                     split PyTorch's fused arrays as Flax's modules need them
`layouts`                                           functions from PyTorch's layout of a weight to Flax's
`names`                                             the forms of a name map
`cast`, `flatten`, `student_of`                     weights in another dtype; by name; out of a train state
`WeightsError`                                      lists all mismatches between arrays and model
==================================================  ==================================================================
"""

from jaxkd.weights import layouts, names
from jaxkd.weights._drop_layers import drop_layers
from jaxkd.weights._fitting import WeightsError, fit_to
from jaxkd.weights._huggingface._bert import hf_bert
from jaxkd.weights._huggingface._directory import load_hf, load_hf_config, save_hf
from jaxkd.weights._huggingface._form import HuggingFace
from jaxkd.weights._huggingface._gpt2 import hf_gpt2
from jaxkd.weights._huggingface._llama import hf_llama
from jaxkd.weights._huggingface._mobilebert import hf_mobilebert
from jaxkd.weights._orbax_directory import load_orbax, load_orbax_metadata, load_run, save_orbax
from jaxkd.weights._program import load_program, save_program
from jaxkd.weights._pruning._channel_groups import ChannelGroup, channel_groups
from jaxkd.weights._pruning._prune_channels import filter_norms, prune_channels
from jaxkd.weights._pruning._prune_width import prune_width
from jaxkd.weights._quantized_file import QuantizedSize, load_quantized, quantized_size, save_quantized
from jaxkd.weights._safetensors_file import load_safetensors, load_safetensors_metadata, save_safetensors
from jaxkd.weights._torch_light import torch_mobilenet_v2, torch_resnet50, torch_shufflenet_v1, torch_shufflenet_v2
from jaxkd.weights._torch_models import split_attention, split_lstm, torch_cifar_resnet
from jaxkd.weights._torch_state import NUM_BATCHES_TRACKED, fit_torch_to, load_torch
from jaxkd.weights._torch_zoo import torch_cifar, torch_vgg, torch_wrn
from jaxkd.weights._tree import cast, flatten, student_of

__all__ = [
    "ChannelGroup",
    "HuggingFace",
    "NUM_BATCHES_TRACKED",
    "QuantizedSize",
    "WeightsError",
    "cast",
    "channel_groups",
    "drop_layers",
    "filter_norms",
    "fit_to",
    "fit_torch_to",
    "flatten",
    "hf_bert",
    "hf_gpt2",
    "hf_llama",
    "hf_mobilebert",
    "layouts",
    "load_hf",
    "load_hf_config",
    "load_orbax",
    "load_orbax_metadata",
    "load_program",
    "load_quantized",
    "load_run",
    "load_safetensors",
    "load_safetensors_metadata",
    "load_torch",
    "names",
    "prune_channels",
    "prune_width",
    "quantized_size",
    "save_hf",
    "save_orbax",
    "save_program",
    "save_quantized",
    "save_safetensors",
    "split_attention",
    "split_lstm",
    "student_of",
    "torch_cifar",
    "torch_cifar_resnet",
    "torch_mobilenet_v2",
    "torch_resnet50",
    "torch_shufflenet_v1",
    "torch_shufflenet_v2",
    "torch_vgg",
    "torch_wrn",
]
