"""PyTorch models known by name, and modules of PyTorch's that hold in one array what Flax holds in several."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkd import checks


def torch_cifar_resnet(depth: int) -> dict[str, str]:
    """The name map of the CIFAR ResNets in PyTorch distillation repositories, onto those of `jaxkd.models`.

    Theirs are ``conv1, bn1, layer1.0.conv1, layer1.0.bn1, …, layer2.0.downsample.0, …, fc``, of whatever width, so that
    ``32`` serves resnet32 and resnet32x4. A ``shortcut`` for ``downsample`` and a ``linear`` for ``fc`` are known too.

    Args:
      depth: ``6 n + 2``.

    Returns:
      For ``fit_torch_to(names=...)``, with ``ignore=NUM_BATCHES_TRACKED``.

    Raises:
      ValueError: the depth is none of 8, 14, 20, ….

    >>> names = torch_cifar_resnet(8)
    >>> names["layer3.0.downsample.0"], names["fc"]
    ('ResNetStage_2/BasicBlock_0/Conv_2', 'Dense_0')
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth: expected 6 n + 2 with n >= 1 (8, 14, 20, 32, 44, 56, 110, …), got {depth}.")
    names = {"conv1": "ResNetStem_0/Conv_0", "bn1": "ResNetStem_0/BatchNorm_0", "fc": "Dense_0", "linear": "Dense_0"}
    for stage in range(3):
        for block in range(blocks):
            theirs, ours = f"layer{stage + 1}.{block}", f"ResNetStage_{stage}/BasicBlock_{block}"
            for number in (1, 2):
                names[f"{theirs}.conv{number}"] = f"{ours}/Conv_{number - 1}"
                names[f"{theirs}.bn{number}"] = f"{ours}/BatchNorm_{number - 1}"
            for shortcut in ("downsample", "shortcut"):
                names[f"{theirs}.{shortcut}.0"] = f"{ours}/Conv_2"
                names[f"{theirs}.{shortcut}.1"] = f"{ours}/BatchNorm_2"
    return names


def split_attention(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A state dict in which one ``torch.nn.MultiheadAttention`` has a query, a key and a value of their own.

    Flax's ``MultiHeadDotProductAttention`` has a module for each. What remains is to split the heads, with
    ``layouts={".*(query|key|value)/.*": layouts.into_heads(n), ".*out/kernel": layouts.out_of_heads(n)}``.

    Args:
      state_dict: names to arrays, as from `load_torch`.
      name: of the module; ``""`` for the whole.

    Returns:
      A new state dict, with ``<name>.query.weight`` and so on, and ``<name>.out.weight``, in place of the module's.

    Raises:
      ValueError: there is no such module in the state dict, or it has a key bias (``add_bias_kv``).

    >>> whole = {"attn.in_proj_weight": np.zeros((6, 2)), "attn.out_proj.weight": np.zeros((2, 2))}
    >>> {key: value.shape for key, value in split_attention(whole, "attn").items()}
    {'attn.query.weight': (2, 2), 'attn.key.weight': (2, 2), 'attn.value.weight': (2, 2), 'attn.out.weight': (2, 2)}
    """
    rest, own = _apart(state_dict, name)
    made: dict[str, Any] = {}
    for kind in ("weight", "bias"):
        if f"in_proj_{kind}" in own:
            parts = np.split(own.pop(f"in_proj_{kind}"), 3)
            made |= {f"{part}.{kind}": value for part, value in zip(("query", "key", "value"), parts, strict=True)}
        if f"out_proj.{kind}" in own:
            made[f"out.{kind}"] = own.pop(f"out_proj.{kind}")
    for part, whole in (("query", "q_proj_weight"), ("key", "k_proj_weight"), ("value", "v_proj_weight")):
        if whole in own:  # keys and values of other widths
            made[f"{part}.weight"] = own.pop(whole)
    _all_known(own, name, "MultiheadAttention")
    return rest | _under(name, made)


def split_lstm(state_dict: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A state dict in which one layer of a ``torch.nn.LSTM``, or a ``torch.nn.LSTMCell``, has a module for each gate.

    Flax's ``LSTMCell`` and ``OptimizedLSTMCell`` have them: ``ii, if, ig, io`` for the input and ``hi, hf, hg, ho`` for
    the hidden state. PyTorch's two biases, which are only ever added, become one.

    Args:
      state_dict: names to arrays, as from `load_torch`.
      name: of the module; ``""`` for the whole.

    Returns:
      A new state dict, with ``<name>.ii.weight``, ``<name>.hi.weight``, ``<name>.hi.bias`` and so on in place of the
      module's arrays.

    Raises:
      ValueError: there is no such module, it has no biases, or more than one layer or direction. Split those by name
        before: each is one of Flax's cells.

    >>> shapes = {"weight_ih_l0": (8, 3), "weight_hh_l0": (8, 2), "bias_ih_l0": (8,), "bias_hh_l0": (8,)}
    >>> made = split_lstm({name: np.zeros(shape) for name, shape in shapes.items()}, "")
    >>> made["ii.weight"].shape, made["hf.bias"].shape
    ((2, 3), (2,))
    """
    rest, own = _apart(state_dict, name)
    own = {key.removesuffix("_l0"): value for key, value in own.items()}
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    if absent := [kind for kind in kinds if kind not in own]:
        raise ValueError(f"{name!r}: expected {', '.join(kinds)}; {', '.join(absent)} is not there.")
    inputs, hidden, *biases = (own.pop(kind) for kind in kinds)
    _all_known(own, name, "LSTM of one layer and direction")
    made: dict[str, Any] = {}
    gates = [np.split(array, 4) for array in (inputs, hidden, biases[0] + biases[1])]
    for gate, of_input, of_hidden, bias in zip("ifgo", *gates, strict=True):
        made |= {f"i{gate}.weight": of_input, f"h{gate}.weight": of_hidden, f"h{gate}.bias": bias}
    return rest | _under(name, made)


def _apart(state_dict: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    start = f"{name}." if name else ""
    own = {key.removeprefix(start): value for key, value in state_dict.items() if key.startswith(start)}
    if not own:
        checks.known(name, {key.rpartition(".")[0] for key in state_dict}, "module")
    return {key: value for key, value in state_dict.items() if not key.startswith(start)}, own


def _under(name: str, made: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}" if name else key: value for key, value in made.items()}


def _all_known(left: Mapping[str, Any], name: str, what: str) -> None:
    if left:
        raise ValueError(f"{name!r}: expected a {what}, got {checks.describe(left)} besides.")
