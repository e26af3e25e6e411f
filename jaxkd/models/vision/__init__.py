"""Networks for images: the CIFAR-100 distillation benchmark's, and a generator.

====================  ========================================================================================
residual networks     `ResNet` and its builders `ResNet8` … `ResNet110`, `ResNet8x4`, `ResNet32x4`;
                      `WideResNet` and its builders `WRN16x1`, `WRN16x2`, `WRN40x1`, `WRN40x2`;
                      `BottleneckResNet` and its builder `ResNet50`
plain networks        `VGG` and its builders `VGG8` … `VGG19`
mobile networks       `MobileNetV2` (half the paper's width), `ShuffleNetV1` (three groups), `ShuffleNetV2` (size 1)
transformers          `ViT`, with an optional distillation token, of a `ViTConfig`, which `vit_config` names
generation            `Generator`: images from noise, for data-free distillation
====================  ========================================================================================
"""

from jaxkd.models.vision._generator import Generator
from jaxkd.models.vision._mobilenet_v2 import MobileNetV2
from jaxkd.models.vision._resnet import (
    ResNet,
    ResNet8,
    ResNet8x4,
    ResNet14,
    ResNet20,
    ResNet32,
    ResNet32x4,
    ResNet44,
    ResNet56,
    ResNet110,
)
from jaxkd.models.vision._resnet50 import BottleneckResNet, ResNet50
from jaxkd.models.vision._shufflenet_v1 import ShuffleNetV1
from jaxkd.models.vision._shufflenet_v2 import ShuffleNetV2
from jaxkd.models.vision._vgg import VGG, VGG8, VGG11, VGG13, VGG16, VGG19
from jaxkd.models.vision._vit import ViT, ViTConfig, vit_config
from jaxkd.models.vision._wide_resnet import WideResNet, WRN16x1, WRN16x2, WRN40x1, WRN40x2

__all__ = [
    "BottleneckResNet",
    "Generator",
    "MobileNetV2",
    "ResNet",
    "ResNet110",
    "ResNet14",
    "ResNet20",
    "ResNet32",
    "ResNet32x4",
    "ResNet44",
    "ResNet50",
    "ResNet56",
    "ResNet8",
    "ResNet8x4",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "VGG",
    "VGG11",
    "VGG13",
    "VGG16",
    "VGG19",
    "VGG8",
    "ViT",
    "ViTConfig",
    "WRN16x1",
    "WRN16x2",
    "WRN40x1",
    "WRN40x2",
    "WideResNet",
    "vit_config",
]
