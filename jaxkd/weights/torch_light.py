"""The other CIFAR models of PyTorch distillation repositories, ResNet50 and the light ones: name maps onto ours.

All take the usual layouts of `fit_torch_to`: a grouped or a depthwise convolution of PyTorch's,
``[out, in / groups, k, k]``, is Flax's with its axes moved, the groups in the same order.
"""

from __future__ import annotations

_SHUFFLENET_BLOCKS = (4, 8, 4)
_LINEAR = {"linear": "Dense_0", "fc": "Dense_0"}


def torch_resnet50() -> dict[str, str]:
    """The name map of ResNet50 in PyTorch distillation repositories, onto that of `jaxkd.models`.

    Theirs are ``conv1, bn1, layer1.0.conv1, layer1.0.bn1, …, layer1.0.shortcut.0, …, layer4.2.bn3, linear``. A
    ``downsample`` for ``shortcut`` and an ``fc`` for ``linear`` are known too.

    Returns:
      For ``fit_torch_to(names=...)``, with ``ignore=NUM_BATCHES_TRACKED``.

    >>> names = torch_resnet50()
    >>> names["layer4.2.bn3"], names["layer1.0.shortcut.0"], names["linear"]
    ('BottleneckStage_3/Bottleneck_2/BatchNorm_2', 'BottleneckStage_0/Bottleneck_0/Conv_3', 'Dense_0')
    """
    names = _numbered("", "ResNetStem_0", 1) | _LINEAR
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            theirs, ours = f"layer{stage + 1}.{block}.", f"BottleneckStage_{stage}/Bottleneck_{block}"
            names |= _numbered(theirs, ours, 3)
            if block == 0:
                for shortcut in ("shortcut", "downsample"):
                    names |= {f"{theirs}{shortcut}.0": f"{ours}/Conv_3", f"{theirs}{shortcut}.1": f"{ours}/BatchNorm_3"}
    return names


def torch_mobilenet_v2() -> dict[str, str]:
    """The name map of MobileNetV2 in PyTorch distillation repositories, onto that of `jaxkd.models`.

    Theirs are ``conv1.0, conv1.1, blocks.0.0.conv.0, blocks.0.0.conv.1, blocks.0.0.conv.3, …, conv2.1, classifier.0``,
    of whatever width and expansion: in each block a convolution, its BatchNorm and a ReLU take three numbers.

    Returns:
      For ``fit_torch_to(names=...)``, with ``ignore=NUM_BATCHES_TRACKED``.

    >>> names = torch_mobilenet_v2()
    >>> names["blocks.5.2.conv.7"], names["classifier.0"]
    ('MobileNetV2Stage_5/InvertedResidual_2/BatchNorm_2', 'Dense_0')
    """
    names = {"classifier.0": "Dense_0"}
    for theirs, ours in (("conv1", "MobileNetV2Stem_0"), ("conv2", "MobileNetV2Head_0")):
        names |= {f"{theirs}.0": f"{ours}/Conv_0", f"{theirs}.1": f"{ours}/BatchNorm_0"}
    for stage, blocks in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for block in range(blocks):
            theirs, ours = f"blocks.{stage}.{block}.conv", f"MobileNetV2Stage_{stage}/InvertedResidual_{block}"
            for number in range(3):
                names[f"{theirs}.{3 * number}"] = f"{ours}/Conv_{number}"
                names[f"{theirs}.{3 * number + 1}"] = f"{ours}/BatchNorm_{number}"
    return names


def torch_shufflenet_v1() -> dict[str, str]:
    """The name map of ShuffleNetV1 in PyTorch distillation repositories, onto that of `jaxkd.models`.

    Theirs are ``conv1, bn1, layer1.0.conv1, layer1.0.bn1, …, layer3.3.bn3, linear``, of whatever width.

    Returns:
      For ``fit_torch_to(names=...)``, with ``ignore=NUM_BATCHES_TRACKED``.

    >>> torch_shufflenet_v1()["layer2.7.conv3"]
    'ShuffleNetV1Stage_1/ShuffleUnit_7/Conv_2'
    """
    names = _numbered("", "ShuffleNetStem_0", 1) | _LINEAR
    for stage, blocks in enumerate(_SHUFFLENET_BLOCKS):
        for block in range(blocks):
            names |= _numbered(f"layer{stage + 1}.{block}.", f"ShuffleNetV1Stage_{stage}/ShuffleUnit_{block}", 3)
    return names


def torch_shufflenet_v2() -> dict[str, str]:
    """The name map of ShuffleNetV2 in PyTorch distillation repositories, onto that of `jaxkd.models`.

    Theirs are ``conv1, bn1, layer1.0.conv1, …, layer1.0.bn5, layer1.1.conv1, …, layer3.3.bn3, conv2, bn2, linear``, of
    whatever size. The first unit of a layer has five convolutions, the others three.

    Returns:
      For ``fit_torch_to(names=...)``, with ``ignore=NUM_BATCHES_TRACKED``.

    >>> names = torch_shufflenet_v2()
    >>> names["layer2.0.conv5"], names["layer2.7.conv3"]
    ('ShuffleNetV2Stage_1/DownUnit_0/Conv_4', 'ShuffleNetV2Stage_1/BasicUnit_6/Conv_2')
    """
    names = _numbered("", "ShuffleNetStem_0", 1) | _LINEAR
    names |= {"conv2": "ShuffleNetHead_0/Conv_0", "bn2": "ShuffleNetHead_0/BatchNorm_0"}
    for stage, blocks in enumerate(_SHUFFLENET_BLOCKS):
        names |= _numbered(f"layer{stage + 1}.0.", f"ShuffleNetV2Stage_{stage}/DownUnit_0", 5)
        for block in range(1, blocks):
            names |= _numbered(f"layer{stage + 1}.{block}.", f"ShuffleNetV2Stage_{stage}/BasicUnit_{block - 1}", 3)
    return names


def _numbered(theirs: str, ours: str, count: int) -> dict[str, str]:
    """``conv1, bn1, conv2, …`` of one of their modules, from 1, onto ours, from 0."""
    names = {}
    for number in range(count):
        names[f"{theirs}conv{number + 1}"] = f"{ours}/Conv_{number}"
        names[f"{theirs}bn{number + 1}"] = f"{ours}/BatchNorm_{number}"
    return names
