"""The digits' networks: one form in several sizes, with BatchNorm, quick on a CPU when seeds are mapped over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

WIDTHS = {
    "huge": (48, 96, 96),
    "wide": (24, 48, 48),
    "teacher": (12, 24, 24),
    "large": (8, 16, 16),
    "middle": (6, 12, 12),
    "student": (4, 8, 8),
}
"""Channels of the three stages, by size."""

TAPS = {"stage1": "Stage_0", "stage2": "Stage_1", "stage3": "Stage_2", "pooled": "Flat_0"}
"""The submodules that schemes tap."""


class Convolution(nn.Module):
    """A 3 × 3 convolution without a bias, written as a matrix product of patches.

    Under ``vmap`` over seeds a convolution primitive becomes a grouped one, which XLA runs several times slower on a
    CPU; a matrix product becomes a batched one.
    """

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w c"]:
        height, width = x.shape[1:3]
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        offsets = [(i, j) for i in range(3) for j in range(3)]
        patches = [x[:, i : i + height : self.stride, j : j + width : self.stride] for i, j in offsets]
        dense = nn.Dense(self.channels, use_bias=False, kernel_init=nn.initializers.he_normal())
        return dense(jnp.concatenate(patches, axis=-1))


class Stage(nn.Module):
    """A convolution, BatchNorm and a ReLU."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], train: bool) -> Float[Array, "batch h w c"]:
        x = Convolution(self.channels, self.stride)(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))


class Flat(nn.Module):
    """A map as one row."""

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch features"]:
        return x.reshape(x.shape[0], -1)


class Net(nn.Module):
    """8 × 8 pixels to maps of 4 × 4, 4 × 4 and 2 × 2, flattened for a linear classifier."""

    widths: tuple[int, int, int]
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Float[Array, "batch 8 8 1"], train: bool = False) -> Float[Array, "batch classes"]:
        for channels, stride in zip(self.widths, (2, 1, 2), strict=True):
            x = Stage(channels, stride)(x, train)
        return nn.Dense(self.num_classes)(Flat()(x))


class Maker(nn.Module):
    """Images from noise, by dense layers: a generator that is quick where seeds are mapped over.

    Its last layer is a BatchNorm without scale and bias, as that of `jaxkd.models.Generator`.
    """

    size: tuple[int, int, int]
    features: int = 128

    @nn.compact
    def __call__(
        self, noise: Float[Array, "batch size"], train: bool = False
    ) -> dict[str, Float[Array, "batch h w c"]]:
        x = noise
        for _ in range(2):
            x = nn.Dense(self.features, use_bias=False)(x)
            x = nn.leaky_relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x), 0.2)
        height, width, channels = self.size
        x = nn.Dense(height * width * channels)(x).reshape(-1, height, width, channels)
        plain = nn.BatchNorm(use_running_average=not train, momentum=0.9, use_scale=False, use_bias=False)
        return {"image": plain(x)}
