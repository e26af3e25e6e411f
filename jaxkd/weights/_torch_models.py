"""The name map of CIFAR ResNets, and functions that split PyTorch's fused arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkd._core import checks
from jaxkd.weights._torch_names import conv_norm, numbered, whole_blocks


def torch_cifar_resnet(depth: int) -> dict[str, str]:
    """Returns the name map of CIFAR ResNets in PyTorch distillation repositories.

    It maps ``conv1, bn1, layer1.0.conv1, layer1.0.bn1, …, layer2.0.downsample.0, …, fc``, of any width, to the modules
    of `jaxkd.models`, for ``fit_torch_to(names=..., ignore=NUM_BATCHES_TRACKED)``: ``32`` is the depth of resnet32 and
    resnet32x4. ``shortcut`` for ``downsample`` and ``linear`` for ``fc`` are mapped too.

    Args:
      depth: ``6 n + 2``.

    Raises:
      ValueError: the depth is not one of 8, 14, 20, ….

    >>> names = torch_cifar_resnet(8)
    >>> names["layer3.0.downsample.0"], names["fc"]
    ('ResNetStage_2/BasicBlock_0/Conv_2', 'Dense_0')
    """
    names = numbered("", "ResNetStem_0", 1) | {"fc": "Dense_0", "linear": "Dense_0"}
    blocks = whole_blocks(depth, 2, "8, 14, 20, 32, 44, 56, 110")
    for stage in range(3):
        for block in range(blocks):
            prefix, module = f"layer{stage + 1}.{block}.", f"ResNetStage_{stage}/BasicBlock_{block}"
            names |= numbered(prefix, module, 2)
            for shortcut in ("downsample", "shortcut"):
                names |= conv_norm(f"{prefix}{shortcut}.0", f"{prefix}{shortcut}.1", module, 2)
    return names


def split_attention(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Splits a ``torch.nn.MultiheadAttention`` of a state dict into its projections.

    Flax's ``MultiHeadDotProductAttention`` has a module each for query, key, value and output. `fit_torch_to` splits
    their heads with
    ``layouts={".*(query|key|value)/.*": layouts.into_heads(n), ".*out/kernel": layouts.out_of_heads(n)}``.

    Args:
      state_dict: names to arrays, as from `load_torch`.
      name: name of the module; ``""`` if the state dict is the module's own.

    Returns:
      A new state dict, with ``<name>.query.weight``, …, ``<name>.out.weight`` in place of the module's arrays.

    Raises:
      ValueError: the state dict has no such module, or the module has further arrays, such as ``bias_k``.

    >>> whole = {"attn.in_proj_weight": np.zeros((6, 2)), "attn.out_proj.weight": np.zeros((2, 2))}
    >>> {key: value.shape for key, value in split_attention(whole, "attn").items()}
    {'attn.query.weight': (2, 2), 'attn.key.weight': (2, 2), 'attn.value.weight': (2, 2), 'attn.out.weight': (2, 2)}
    """
    rest, own = _split_off(state_dict, name)
    made: dict[str, Any] = {}
    for kind in ("weight", "bias"):
        if f"in_proj_{kind}" in own:
            parts = np.split(own.pop(f"in_proj_{kind}"), 3)
            made |= {f"{part}.{kind}": value for part, value in zip(("query", "key", "value"), parts, strict=True)}
        if f"out_proj.{kind}" in own:
            made[f"out.{kind}"] = own.pop(f"out_proj.{kind}")
    for part, whole in (("query", "q_proj_weight"), ("key", "k_proj_weight"), ("value", "v_proj_weight")):
        if whole in own:  # PyTorch does not fuse them if keys or values have another width
            made[f"{part}.weight"] = own.pop(whole)
    _refuse_further(own, name, "a MultiheadAttention")
    return rest | _under(name, made)


def split_lstm(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Splits one layer of a ``torch.nn.LSTM``, or an ``LSTMCell``, into its gates.

    Flax's ``LSTMCell`` and ``OptimizedLSTMCell`` have a module for each: ``ii, if, ig, io`` for the input and
    ``hi, hf, hg, ho`` for the hidden state. PyTorch's two biases are summed into one.

    Args:
      state_dict: names to arrays, as from `load_torch`.
      name: name of the module; ``""`` if the state dict is the module's own.

    Returns:
      A new state dict, with ``<name>.ii.weight``, ``<name>.hi.weight``, ``<name>.hi.bias`` and so on in place of the
      module's arrays.

    Raises:
      ValueError: the state dict has no such module, the module has no biases, or it has several layers or directions.
        Split those by name first: each is one of Flax's cells.

    >>> shapes = {"weight_ih_l0": (8, 3), "weight_hh_l0": (8, 2), "bias_ih_l0": (8,), "bias_hh_l0": (8,)}
    >>> made = split_lstm({name: np.zeros(shape) for name, shape in shapes.items()}, "")
    >>> made["ii.weight"].shape, made["hf.bias"].shape
    ((2, 3), (2,))
    """
    rest, own = _split_off(state_dict, name)
    own = {key.removesuffix("_l0"): value for key, value in own.items()}
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    if absent := [kind for kind in kinds if kind not in own]:
        raise ValueError(f"{name!r}: expected {', '.join(kinds)}; missing: {', '.join(absent)}.")
    inputs, hidden, *biases = (own.pop(kind) for kind in kinds)
    _refuse_further(own, name, "an LSTM of one layer and direction")
    made: dict[str, Any] = {}
    gates = [np.split(array, 4) for array in (inputs, hidden, biases[0] + biases[1])]
    for gate, input_weight, hidden_weight, bias in zip("ifgo", *gates, strict=True):
        made |= {f"i{gate}.weight": input_weight, f"h{gate}.weight": hidden_weight, f"h{gate}.bias": bias}
    return rest | _under(name, made)


def _split_off(state_dict: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    start = f"{name}." if name else ""
    own = {key.removeprefix(start): value for key, value in state_dict.items() if key.startswith(start)}
    if not own:
        checks.known(name, {key.rpartition(".")[0] for key in state_dict}, "module")
    return {key: value for key, value in state_dict.items() if not key.startswith(start)}, own


def _under(name: str, made: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}" if name else key: value for key, value in made.items()}


def _refuse_further(left: Mapping[str, Any], name: str, kind: str) -> None:
    if left:
        raise ValueError(f"{name!r}: expected the arrays of {kind}, got also {checks.describe(left)}.")
