"""Models: a small zoo in Flax linen, for the experiments and as examples. Any model of yours works as well.

====================  ========================================================================================
`mlp`                 `MLP`: hidden layers that can be tapped, optional dropout
`resnet`              `ResNet` and its builders `ResNet8` … `ResNet110`, `ResNet8x4`, `ResNet32x4`, for CIFAR
`registry`            `create` by name, `names`, and `taps`: the path of each point that methods use
====================  ========================================================================================

Every model is called as ``model(x, train=False)`` with normalised NHWC images and returns logits. Only experiments,
benchmarks and tests import this package.
"""

from jaxkd.models.mlp import MLP
from jaxkd.models.registry import create, names, taps
from jaxkd.models.resnet import (
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

__all__ = [
    "MLP",
    "ResNet",
    "ResNet8",
    "ResNet8x4",
    "ResNet14",
    "ResNet20",
    "ResNet32",
    "ResNet32x4",
    "ResNet44",
    "ResNet56",
    "ResNet110",
    "create",
    "names",
    "taps",
]
