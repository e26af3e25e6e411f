"""The networks of the digits: one form in several sizes, with BatchNorm."""

import flax.linen as nn
from jaxtyping import Array, Float

from experiments.kit.inputs import patches

WIDTHS = {"huge": (48, 96, 96), "wide": (24, 48, 48), "teacher": (12, 24, 24)}
WIDTHS |= {"large": (8, 16, 16), "middle": (6, 12, 12), "student": (4, 8, 8)}  # channels of the three stages, by size

TAPS = {"stage1": "Stage_0", "stage2": "Stage_1", "stage3": "Stage_2", "pooled": "Flat_0"}
"""The submodules that schemes tap."""


class Convolution(nn.Module):
    """A 3 × 3 convolution without a bias, quick where ``vmap`` maps over seeds."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w c"]:
        dense = nn.Dense(self.channels, use_bias=False, kernel_init=nn.initializers.he_normal())
        return dense(patches(x, self.stride))


class Stage(nn.Module):
    """A convolution, BatchNorm and a ReLU."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], train: bool) -> Float[Array, "batch h w c"]:
        x = Convolution(self.channels, self.stride)(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))


class Flat(nn.Module):
    """Flattens a map."""

    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch features"]:
        return x.reshape(x.shape[0], -1)


class Net(nn.Module):
    """Three stages, with maps of 4 × 4, 4 × 4 and 2 × 2, and a linear classifier."""

    widths: tuple[int, int, int]
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Float[Array, "batch 8 8 1"], train: bool = False) -> Float[Array, "batch classes"]:
        for channels, stride in zip(self.widths, (2, 1, 2), strict=True):
            x = Stage(channels, stride)(x, train)
        return nn.Dense(self.num_classes)(Flat()(x))


class Maker(nn.Module):
    """A generator of dense layers, which are quick where seeds are mapped over.

    Its last layer is a BatchNorm without scale and bias, as in `jaxkd.models.Generator`.
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
