"""Name maps of wide ResNets and VGGs, and of any CIFAR model by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from jaxkd._core import checks
from jaxkd.weights._torch_light import torch_mobilenet_v2, torch_resnet50, torch_shufflenet_v1, torch_shufflenet_v2
from jaxkd.weights._torch_models import torch_cifar_resnet
from jaxkd.weights._torch_names import numbered, sequential, whole_blocks


def torch_wrn(depth: int) -> dict[str, str]:
    """Returns the name map of CIFAR wide ResNets in PyTorch distillation repositories.

    It maps ``conv1, block1.layer.0.bn1, block1.layer.0.conv1, …, block2.layer.0.convShortcut, …, bn1, fc``, of any
    width, to the modules of `jaxkd.models`, for ``fit_torch_to(names=..., ignore=NUM_BATCHES_TRACKED)``: ``40`` is the
    depth of wrn_40_1 and wrn_40_2.

    Args:
      depth: ``6 n + 4``.

    Raises:
      ValueError: the depth is not one of 10, 16, 22, ….

    >>> torch_wrn(16)["block2.layer.0.convShortcut"]
    'WideResNetStage_1/WideBlock_0/Conv_2'
    """
    blocks = whole_blocks(depth, 4, "10, 16, 22, 28, 40")
    names = {"conv1": "Conv_0", "bn1": "WideResNetHead_0/BatchNorm_0", "fc": "Dense_0"}
    for stage in range(3):
        for block in range(blocks):
            prefix, module = f"block{stage + 1}.layer.{block}.", f"WideResNetStage_{stage}/WideBlock_{block}"
            names |= numbered(prefix, module, 2) | {f"{prefix}convShortcut": f"{module}/Conv_2"}
    return names


def torch_vgg(depth: int) -> dict[str, str]:
    """Returns the name map of CIFAR VGGs in PyTorch distillation repositories.

    It maps ``block0.0, block0.1, block0.3, …, block4.1, …, classifier`` of the VGGs with BatchNorm to the modules of
    `jaxkd.models`, for ``fit_torch_to(names=..., ignore=NUM_BATCHES_TRACKED)``.

    Args:
      depth: 8, 11, 13, 16 or 19.

    Raises:
      ValueError: the depth is none of these.

    >>> names = torch_vgg(13)
    >>> names["block0.3"], names["block0.4"], names["classifier"]
    ('VGGStage_0/Conv_1', 'VGGStage_0/BatchNorm_1', 'Dense_0')
    """
    if depth not in _CONVOLUTIONS:
        raise ValueError(f"depth: expected one of {', '.join(map(str, _CONVOLUTIONS))}, got {depth}.")
    names = {"classifier": "Dense_0"}
    for stage, convolutions in enumerate(_CONVOLUTIONS[depth]):
        names |= sequential(f"block{stage}.", f"VGGStage_{stage}", convolutions)
    return names


def torch_cifar(name: str) -> dict[str, str]:
    """Returns the name map of any CIFAR model of `jaxkd.models`, by its name.

    It maps the names of PyTorch distillation repositories, for ``fit_torch_to(names=..., ignore=NUM_BATCHES_TRACKED)``.
    The names of the models are those of `jaxkd.models.names`.

    Raises:
      ValueError: the name is unknown; the message lists the names.

    A teacher from such a repository's checkpoint, whose state dict has the key ``"model"``:

    >>> from jaxkd import weights
    >>> def load(model, template, path):
    ...     state_dict = weights.load_torch(path, key="model")
    ...     names, ignore = weights.torch_cifar(model), weights.NUM_BATCHES_TRACKED
    ...     return weights.fit_torch_to(template, state_dict, names=names, ignore=ignore)
    >>> torch_cifar("wrn_40_2")["bn1"], torch_cifar("resnet32x4")["bn1"]
    ('WideResNetHead_0/BatchNorm_0', 'ResNetStem_0/BatchNorm_0')
    """
    checks.known(name, _MAPS, "model")
    return _MAPS[name]()


_CONVOLUTIONS: dict[int, Sequence[int]] = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}

_MAPS: dict[str, Callable[[], dict[str, str]]] = {
    **{f"resnet{depth}": partial(torch_cifar_resnet, depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(torch_cifar_resnet, depth) for depth in (8, 32)},
    **{f"wrn_{depth}_{width}": partial(torch_wrn, depth) for depth in (16, 40) for width in (1, 2)},
    **{f"vgg{depth}": partial(torch_vgg, depth) for depth in _CONVOLUTIONS},
    "resnet50": torch_resnet50,
    "mobilenet_v2": torch_mobilenet_v2,
    "shufflenet_v1": torch_shufflenet_v1,
    "shufflenet_v2": torch_shufflenet_v2,
}
