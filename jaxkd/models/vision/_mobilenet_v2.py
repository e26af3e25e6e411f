"""MobileNetV2 for CIFAR, as in the distillation literature, half as wide.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, table 2, as the CIFAR-100 distillation
benchmark builds it. It differs from the network for ImageNet: ReLU replaces ReLU6; the second stage does not halve the
map; blocks of expansion 1 have a first 1×1 convolution too; widths are truncated, not rounded to multiples of eight;
no dropout precedes the linear layer.

Every tap of a published method is the output of a submodule, so that an adapter can name it:

=================  ========================  ==================
tap                path                      width 0.5
=================  ========================  ==================
stem               ``MobileNetV2Stem_0``     16 × 16 × 16
stage1             ``MobileNetV2Stage_1``    16 × 16 × 12
stage2             ``MobileNetV2Stage_2``    8 × 8 × 16
stage3             ``MobileNetV2Stage_4``    4 × 4 × 48
stage4             ``MobileNetV2Stage_6``    2 × 2 × 160
pooled             ``GlobalAveragePool_0``   1280
stage{k}_preact    as stage{k}               as stage{k}
=================  ========================  ==================

The network has seven stages; the taps are those before a change of the map's size, and the last. A bottleneck is
linear: no ReLU follows it, so that ``stage{k}`` takes both signs, and ``stage{k}_preact`` is the same array.

Convolutions, depthwise ones included, are initialized from a normal distribution with standard deviation
``sqrt(2 / (k · k · out))``, the linear layer with 0.01 and a bias of 0. The biased running variance, explained in
the module of `ResNet`, differs by a factor of ``1 - 1/256`` at most for a batch of 64 (2 × 2 maps).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn

from jaxkd.models._layers import GlobalAveragePool, Residual, batch_norm, check_images, conv

if TYPE_CHECKING:
    from jaxtyping import Array, Float

# Per stage: channels at width 1, number of blocks, stride of the first block.
_STAGES = ((16, 1, 1), (24, 2, 1), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
_TAPPED = (1, 2, 4, 6)
_HEAD = 1280


class MobileNetV2(nn.Module):
    """MobileNetV2 for small images.

    >>> import jax, jax.numpy as jnp
    >>> model = MobileNetV2(num_classes=100)
    >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    812836

    Attributes:
      expansion: ratio of a block's inner channels to its input channels; the first stage has 1.
      width: factor of the paper's channels; it applies to the 1280 of the head only if it exceeds 1.
      num_classes: number of logits.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; parameters and running statistics stay float32.
    """

    expansion: int = 6
    width: float = 0.5
    num_classes: int = 100
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns logits of normalized images ``[batch, height, width, channels]``.

        The images are 32 × 32 × 3 on CIFAR. With ``train``, BatchNorm uses the batch's statistics and updates the
        running ones.

        Raises:
          TypeError: the image is not floating point.
          ValueError: the image does not have four axes, or the width leaves no channel.
        """
        if int(_STAGES[0][0] * self.width) < 1:
            raise ValueError(
                f"width: expected at least {1 / _STAGES[0][0]}, which leaves one channel, got {self.width}."
            )
        check_images(x)
        options = {"train": train, "dtype": self.dtype}
        x = MobileNetV2Stem(int(32 * self.width), **options)(x)
        for number, (features, blocks, stride) in enumerate(_STAGES):
            expansion = 1 if number == 0 else self.expansion
            x = MobileNetV2Stage(blocks, int(features * self.width), stride, expansion, **options)(x)
        x = MobileNetV2Head(int(_HEAD * max(self.width, 1.0)), **options)(x)
        x = GlobalAveragePool()(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01))(x)


class MobileNetV2Stem(nn.Module):
    """3×3 convolution that halves the map, BatchNorm, ReLU."""

    features: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the stem's output, after its ReLU."""
        return nn.relu(batch_norm(self)(conv(self.features, 3, 2, self.dtype)(x)))


class MobileNetV2Stage(nn.Module):
    """Inverted residual blocks of one width; the first may halve the map."""

    blocks: int
    features: int
    stride: int
    expansion: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the last block's output, which no ReLU follows."""
        for number in range(self.blocks):
            stride = self.stride if number == 0 else 1
            x = InvertedResidual(self.features, stride, self.expansion, train=self.train, dtype=self.dtype)(x)
        return x


class InvertedResidual(nn.Module):
    """Expanding 1×1, depthwise 3×3 and projecting 1×1 convolution.

    BatchNorm follows each, and ReLU the first two. The input is added where it has the output's shape.
    """

    features: int
    stride: int
    expansion: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the block's output, which no ReLU follows."""
        inside = x.shape[-1] * self.expansion
        y = nn.relu(batch_norm(self)(conv(inside, 1, 1, self.dtype)(x)))
        y = nn.relu(batch_norm(self)(conv(inside, 3, self.stride, self.dtype, groups=inside)(y)))
        y = batch_norm(self)(conv(self.features, 1, 1, self.dtype)(y))
        return Residual()(y, x) if self.stride == 1 and x.shape[-1] == self.features else y


class MobileNetV2Head(nn.Module):
    """1×1 convolution, BatchNorm, ReLU."""

    features: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width features"]:
        """Returns the map before the pooling, after its ReLU."""
        return nn.relu(batch_norm(self)(conv(self.features, 1, 1, self.dtype)(x)))


def taps(model: MobileNetV2) -> dict[str, str]:
    """Returns the path of each tapped submodule, by the name of its tap.

    >>> taps(MobileNetV2())["stage3"], taps(MobileNetV2())["stage3_preact"]
    ('MobileNetV2Stage_4', 'MobileNetV2Stage_4')
    """
    stages = {f"stage{number}": f"MobileNetV2Stage_{stage}" for number, stage in enumerate(_TAPPED, start=1)}
    return {
        "stem": "MobileNetV2Stem_0",
        **stages,
        "pooled": "GlobalAveragePool_0",
        **{f"{name}_preact": path for name, path in stages.items()},
    }


def margin_norms(model: MobileNetV2) -> dict[str, str]:
    """Returns the path of the BatchNorm that gives each pre-activation tap's margin.

    >>> margin_norms(MobileNetV2())["stage3_preact"]
    'MobileNetV2Stage_4/InvertedResidual_2/BatchNorm_2'
    """
    return {
        f"stage{number}_preact": f"MobileNetV2Stage_{stage}/InvertedResidual_{_STAGES[stage][1] - 1}/BatchNorm_2"
        for number, stage in enumerate(_TAPPED, start=1)
    }
