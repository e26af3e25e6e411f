"""Two small networks of one form, quick on a CPU where seeds are mapped over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn

from experiments.kit.inputs import patches

if TYPE_CHECKING:
    from jaxtyping import Array, Float

LAYERS = ("Layer_0", "Layer_1")
"""The submodules that distillation taps."""


class Layer(nn.Module):
    """A 3 × 3 convolution and a ReLU."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w c"]:
        x = nn.Dense(self.channels, kernel_init=nn.initializers.he_normal())(patches(x, self.stride))
        return nn.relu(x)


class Net(nn.Module):
    """8 × 8 pixels to two maps of 4 × 4, flattened for a linear classifier."""

    widths: tuple[int, int]
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Float[Array, "batch 8 8 1"]) -> Float[Array, "batch classes"]:
        x = Layer(self.widths[0], stride=2)(x)
        x = Layer(self.widths[1])(x)
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))
