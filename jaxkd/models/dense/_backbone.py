"""A residual network with a pyramid of feature maps.

Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017, section 3: each stage's map goes through a 1×1
(lateral) convolution; the coarser map of the pyramid, repeated twice in both directions, is added; and a 3×3
convolution makes the level's output. The top-down path adds the sums, not the outputs.

A stage of stride 2 makes maps of ``ceil(size / 2)``, so that a repeated map may be one row or column larger than the
lateral one; it is cut there, and position i of a coarse map stays at positions 2i and 2i + 1 of the finer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from jaxkd.models._layers import batch_norm, check_images, conv
from jaxkd.models.vision._resnet import ResNetStage

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class PyramidBackbone(nn.Module):
    """Residual network with a pyramid of feature maps, finest first.

    Also known as: FPN (feature pyramid network).

    A stem of 3×3 convolutions of stride 2, stages of basic blocks as those of the CIFAR ResNets, and the pyramid over
    all stages. The stages' own maps, before the pyramid, are at the paths ``ResNetStage_0``, ``ResNetStage_1``, …

    Attributes:
      widths: channels of each stage, which has half the resolution of the stage before.
      channels: channels of every level of the pyramid.
      blocks: number of basic blocks of a stage.
      stride: pixels between neighboring positions of the finest level, a power of two.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; parameters and running statistics stay float32.

    >>> import jax
    >>> model = PyramidBackbone(widths=(8, 16, 32), channels=24)
    >>> image = jnp.zeros((2, 30, 41, 3))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
    >>> levels = jax.eval_shape(model.apply, variables, image)
    >>> {name: level.shape[1:] for name, level in levels.items()}
    {'level0': (8, 11, 24), 'level1': (4, 6, 24), 'level2': (2, 3, 24)}
    >>> model.strides
    (4, 8, 16)
    """

    widths: Sequence[int] = (16, 32, 64, 128)
    channels: int = 64
    blocks: int = 1
    stride: int = 4
    dtype: Any = None

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighboring positions of each level, finest first."""
        return level_strides(self.stride, len(self.widths))

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], train: bool = False) -> dict[str, Array]:
        """Returns the levels of normalized images ``[batch, height, width, channels]``.

        They are named ``level0``, ``level1``, …; a level of stride s is ``[batch, ceil(height / s), ceil(width / s),
        channels]``. With ``train``, BatchNorm uses the batch's statistics and updates the running ones.

        Raises:
          TypeError: the image is not floating point.
          ValueError: the image does not have four axes, there is no stage, or the stride is not a power of two.
        """
        check_images(x)
        if not self.widths or min(self.widths) < 1 or self.blocks < 1:
            raise ValueError(
                f"widths, blocks: expected one stage or more, of at least one channel and block, got "
                f"{tuple(self.widths)}, {self.blocks}."
            )
        halvings = self.stride.bit_length() - 1
        if self.stride < 1 or self.stride != 2**halvings:
            raise ValueError(f"stride: expected a power of two (1, 2, 4, 8, …), got {self.stride}.")
        x = PyramidStem(self.widths[0], halvings, train=train, dtype=self.dtype)(x)
        maps = []
        for number, width in enumerate(self.widths):
            x = ResNetStage(self.blocks, width, stride=1 if number == 0 else 2, train=train, dtype=self.dtype)(x)
            maps.append(x)
        return {f"level{number}": level for number, level in enumerate(Pyramid(self.channels, self.dtype)(maps))}


class PyramidStem(nn.Module):
    """3×3 convolutions with BatchNorm and ReLU, one for each halving of the image."""

    features: int
    halvings: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns a map with strides of 2, or of stride 1 without a halving."""
        for stride in (2,) * self.halvings or (1,):
            x = nn.relu(batch_norm(self)(conv(self.features, 3, stride, self.dtype)(x)))
        return x


class Pyramid(nn.Module):
    """The top-down path over the maps of several stages, finest first."""

    channels: int
    dtype: Any = None

    @nn.compact
    def __call__(self, maps: Sequence[Float[Array, "batch _ _ _"]]) -> list[Float[Array, "batch _ _ channels"]]:
        """Returns one map of ``channels`` for each map of the stages."""
        sums: list[Array] = []
        for number, x in reversed(list(enumerate(maps))):
            x = nn.Conv(self.channels, (1, 1), dtype=self.dtype, name=f"lateral{number}")(x)
            sums.insert(0, x + repeated(sums[0], x.shape[1], x.shape[2]) if sums else x)
        return [
            nn.Conv(self.channels, (3, 3), padding=1, dtype=self.dtype, name=f"output{number}")(x)
            for number, x in enumerate(sums)
        ]


def level_strides(stride: int, levels: int) -> tuple[int, ...]:
    """Returns the stride of each level, twice that of the level before.

    >>> level_strides(4, 3)
    (4, 8, 16)
    """
    return tuple(stride * 2**level for level in range(levels))


def repeated(x: Float[Array, "*batch h w channels"], height: int, width: int) -> Float[Array, "*batch height width c"]:
    """Returns a map of twice the resolution, cut to a size: the nearest neighbors.

    >>> repeated(jnp.array([[1, 2]])[None, :, :, None], 1, 3)[0, :, :, 0]
    Array([[1, 1, 2]], dtype=int32)
    """
    return jnp.repeat(jnp.repeat(x, 2, axis=-3), 2, axis=-2)[..., :height, :width, :]
