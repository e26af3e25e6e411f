"""Name maps of ResNet50, MobileNetV2 and the ShuffleNets in PyTorch repositories.

All use the layouts that `fit_torch_to` applies by default: the weight of a grouped or depthwise convolution in PyTorch,
``[out, in / groups, k, k]``, is Flax's with its axes moved and the groups in the same order.
"""

from __future__ import annotations

from jaxkd.weights._torch_names import conv_norm, numbered, sequential

_SHUFFLENET_BLOCKS = (4, 8, 4)
_LINEAR = {"linear": "Dense_0", "fc": "Dense_0"}


def torch_resnet50() -> dict[str, str]:
    """Returns the name map of ResNet50 in PyTorch distillation repositories.

    It maps ``conv1, bn1, layer1.0.conv1, layer1.0.bn1, …, layer1.0.shortcut.0, …, layer4.2.bn3, linear`` to the modules
    of `jaxkd.models`, for ``fit_torch_to(names=..., ignore=NUM_BATCHES_TRACKED)``. ``downsample`` for ``shortcut`` and
    ``fc`` for ``linear`` are mapped too.

    >>> names = torch_resnet50()
    >>> names["layer4.2.bn3"], names["layer1.0.shortcut.0"], names["linear"]
    ('BottleneckStage_3/Bottleneck_2/BatchNorm_2', 'BottleneckStage_0/Bottleneck_0/Conv_3', 'Dense_0')
    """
    names = numbered("", "ResNetStem_0", 1) | _LINEAR
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for block in range(blocks):
            prefix, module = f"layer{stage + 1}.{block}.", f"BottleneckStage_{stage}/Bottleneck_{block}"
            names |= numbered(prefix, module, 3)
            if block == 0:
                for shortcut in ("shortcut", "downsample"):
                    names |= conv_norm(f"{prefix}{shortcut}.0", f"{prefix}{shortcut}.1", module, 3)
    return names


def torch_mobilenet_v2() -> dict[str, str]:
    """Returns the name map of MobileNetV2 in PyTorch distillation repositories.

    It maps ``conv1.0, conv1.1, blocks.0.0.conv.0, blocks.0.0.conv.1, blocks.0.0.conv.3, …, conv2.1, classifier.0``, of
    any width and expansion, to the modules of `jaxkd.models`, for
    ``fit_torch_to(names=..., ignore=NUM_BATCHES_TRACKED)``.

    >>> names = torch_mobilenet_v2()
    >>> names["blocks.5.2.conv.7"], names["classifier.0"]
    ('MobileNetV2Stage_5/InvertedResidual_2/BatchNorm_2', 'Dense_0')
    """
    names = {"classifier.0": "Dense_0"}
    names |= sequential("conv1.", "MobileNetV2Stem_0", 1) | sequential("conv2.", "MobileNetV2Head_0", 1)
    for stage, blocks in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for block in range(blocks):
            module = f"MobileNetV2Stage_{stage}/InvertedResidual_{block}"
            names |= sequential(f"blocks.{stage}.{block}.conv.", module, 3)
    return names


def torch_shufflenet_v1() -> dict[str, str]:
    """Returns the name map of ShuffleNetV1 in PyTorch distillation repositories.

    It maps ``conv1, bn1, layer1.0.conv1, layer1.0.bn1, …, layer3.3.bn3, linear``, of any width, to the modules of
    `jaxkd.models`, for ``fit_torch_to(names=..., ignore=NUM_BATCHES_TRACKED)``.

    >>> torch_shufflenet_v1()["layer2.7.conv3"]
    'ShuffleNetV1Stage_1/ShuffleUnit_7/Conv_2'
    """
    names = numbered("", "ShuffleNetStem_0", 1) | _LINEAR
    for stage, blocks in enumerate(_SHUFFLENET_BLOCKS):
        for block in range(blocks):
            names |= numbered(f"layer{stage + 1}.{block}.", f"ShuffleNetV1Stage_{stage}/ShuffleUnit_{block}", 3)
    return names


def torch_shufflenet_v2() -> dict[str, str]:
    """Returns the name map of ShuffleNetV2 in PyTorch distillation repositories.

    It maps ``conv1, bn1, layer1.0.conv1, …, layer1.0.bn5, layer1.1.conv1, …, layer3.3.bn3, conv2, bn2, linear``, of any
    size, to the modules of `jaxkd.models`, for ``fit_torch_to(names=..., ignore=NUM_BATCHES_TRACKED)``. The first unit
    of a layer has five convolutions, the others three.

    >>> names = torch_shufflenet_v2()
    >>> names["layer2.0.conv5"], names["layer2.7.conv3"]
    ('ShuffleNetV2Stage_1/DownUnit_0/Conv_4', 'ShuffleNetV2Stage_1/BasicUnit_6/Conv_2')
    """
    names = numbered("", "ShuffleNetStem_0", 1) | conv_norm("conv2", "bn2", "ShuffleNetHead_0", 0) | _LINEAR
    for stage, blocks in enumerate(_SHUFFLENET_BLOCKS):
        names |= numbered(f"layer{stage + 1}.0.", f"ShuffleNetV2Stage_{stage}/DownUnit_0", 5)
        for block in range(1, blocks):
            names |= numbered(f"layer{stage + 1}.{block}.", f"ShuffleNetV2Stage_{stage}/BasicUnit_{block - 1}", 3)
    return names
