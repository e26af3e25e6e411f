"""Two small networks of the same form, convolutions that are quick on a CPU even when seeds are mapped over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

LAYERS = ("Layer_0", "Layer_1")
"""The submodules that distillation taps."""


class Layer(nn.Module):
    """A 3 × 3 convolution and a ReLU.

    It is written as a matrix product of patches. Under ``vmap`` over seeds, each with weights of its own, a convolution
    primitive becomes a grouped one, which XLA runs several times slower on a CPU; a matrix product becomes a batched
    one.
    """

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w c"]:
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        offsets = [(i, j) for i in range(3) for j in range(3)]
        patches = [x[:, i : i + height : self.stride, j : j + width : self.stride] for i, j in offsets]
        x = nn.Dense(self.channels, kernel_init=nn.initializers.he_normal())(jnp.concatenate(patches, axis=-1))
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
