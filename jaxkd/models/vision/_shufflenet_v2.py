"""ShuffleNetV2 for CIFAR, as in the distillation literature: size 1.

Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", 2018, table 5, as the CIFAR-100
distillation benchmark builds it: the stem is a 1×1 convolution that keeps the map's size.

Every tap of a published method is the output of a submodule, so that an adapter can name it:

=================  ==============================================================  ==================
tap                path                                                            size 1
=================  ==============================================================  ==================
stem               ``ShuffleNetStem_0``                                            32 × 32 × 24
stage1             ``ShuffleNetV2Stage_0``                                         16 × 16 × 116
stage2             ``ShuffleNetV2Stage_1``                                         8 × 8 × 232
stage3             ``ShuffleNetV2Stage_2``                                         4 × 4 × 464
pooled             ``GlobalAveragePool_0``                                         1024
stage{k}_preact    ``ShuffleNetV2Stage_{k-1}/BasicUnit_{last}/Concatenation_0``    as stage{k}
=================  ==============================================================  ==================

The first five taps follow the ReLU. A unit passes half of its channels through unchanged, so that ``preact`` is the
concatenation of these and of the other half before its ReLU, not shuffled: ``stage{k}`` is its ReLU, shuffled.

Convolutions and the linear layer have PyTorch's default initialization, uniform in ``±1/sqrt(fan_in)``, where the
fan-in of a grouped convolution is that of one group. The biased running variance, explained in
the module of `ResNet`, differs by a factor of ``1 - 1/1024`` at most for a batch of 64 (4 × 4 maps).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from jaxkd.models._layers import GlobalAveragePool, batch_norm, check_images, classifier, uniform_conv
from jaxkd.models.vision._shufflenet_v1 import STEM, ShuffleNetStem, channel_shuffle, check_stages

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2 for small images.

    >>> import jax
    >>> model = ShuffleNetV2(num_classes=100)
    >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    1355528

    Attributes:
      num_filters: output channels of each stage, even, and of the 1×1 convolution before the pooling.
      blocks: number of units in each stage.
      num_classes: number of logits.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; parameters and running statistics stay float32.
    """

    num_filters: Sequence[int] = (116, 232, 464, 1024)
    blocks: Sequence[int] = (4, 8, 4)
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
          ValueError: the image does not have four axes; a stage has fewer than two units, one that halves the map and
            one that is tapped; or its channels do not divide into halves.
        """
        *stages, head = self.num_filters
        check_stages(self.blocks, stages)
        if any(features % 2 for features in stages):
            raise ValueError(f"num_filters: expected even numbers of channels for the stages, got {tuple(stages)}.")
        check_images(x)
        options = {"train": train, "dtype": self.dtype}
        x = ShuffleNetStem(STEM, **options)(x)
        for blocks, features in zip(self.blocks, stages, strict=True):
            x = ShuffleNetV2Stage(blocks, features, **options)(x)
        x = ShuffleNetHead(head, **options)(x)
        x = GlobalAveragePool()(x)
        return classifier(self.num_classes, x.shape[-1], self.dtype)(x)


class ShuffleNetV2Stage(nn.Module):
    """A unit that halves the map, then units of the same width."""

    blocks: int
    features: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the last unit's output, after its ReLU and its shuffle."""
        options = {"train": self.train, "dtype": self.dtype}
        x = DownUnit(self.features, **options)(x)
        for _ in range(self.blocks - 1):
            x = BasicUnit(**options)(x)
        return x


class BasicUnit(nn.Module):
    """Half of the channels unchanged, half through 1×1, depthwise 3×3, 1×1; shuffled.

    BatchNorm follows each convolution, and ReLU the 1×1 ones.
    """

    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Returns the unit's output, after its ReLU and its shuffle."""
        kept, y = jnp.split(x, 2, axis=-1)
        features = y.shape[-1]
        y = nn.relu(batch_norm(self)(uniform_conv(features, 1, 1, self.dtype)(y)))
        y = batch_norm(self)(uniform_conv(features, 3, 1, self.dtype, groups=features)(y))
        y = batch_norm(self)(uniform_conv(features, 1, 1, self.dtype)(y))
        Concatenation()(kept, y)  # a tap; without one, jit removes it as dead code
        return channel_shuffle(jnp.concatenate([kept, nn.relu(y)], axis=-1), 2)


class DownUnit(nn.Module):
    """Two branches that read all channels, each giving half of the features.

    One is a depthwise 3×3 and a 1×1 convolution; the other has a further 1×1 before them. BatchNorm follows each
    convolution, and ReLU the 1×1 ones. The depthwise ones halve the map.
    """

    features: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the unit's output, after its ReLU and its shuffle."""
        inputs, half = x.shape[-1], self.features // 2
        left = batch_norm(self)(uniform_conv(inputs, 3, 2, self.dtype, groups=inputs)(x))
        left = nn.relu(batch_norm(self)(uniform_conv(half, 1, 1, self.dtype)(left)))
        right = nn.relu(batch_norm(self)(uniform_conv(half, 1, 1, self.dtype)(x)))
        right = batch_norm(self)(uniform_conv(half, 3, 2, self.dtype, groups=half)(right))
        right = nn.relu(batch_norm(self)(uniform_conv(half, 1, 1, self.dtype)(right)))
        return channel_shuffle(jnp.concatenate([left, right], axis=-1), 2)


class Concatenation(nn.Module):
    """Concatenation of channels, as a module, so that a pre-activation can be tapped."""

    @nn.compact
    def __call__(
        self, first: Float[Array, "batch height width c"], second: Float[Array, "batch height width d"]
    ) -> Float[Array, "batch height width channels"]:
        """Returns ``[first, second]``."""
        return jnp.concatenate([first, second], axis=-1)


class ShuffleNetHead(nn.Module):
    """1×1 convolution, BatchNorm, ReLU."""

    features: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width features"]:
        """Returns the map before the pooling, after its ReLU."""
        return nn.relu(batch_norm(self)(uniform_conv(self.features, 1, 1, self.dtype)(x)))


def taps(model: ShuffleNetV2) -> dict[str, str]:
    """Returns the path of each tapped submodule, by the name of its tap.

    >>> taps(ShuffleNetV2())["stage2"], taps(ShuffleNetV2())["stage2_preact"]
    ('ShuffleNetV2Stage_1', 'ShuffleNetV2Stage_1/BasicUnit_6/Concatenation_0')
    """
    stages = range(len(model.blocks))
    return {
        "stem": "ShuffleNetStem_0",
        **{f"stage{number + 1}": f"ShuffleNetV2Stage_{number}" for number in stages},
        "pooled": "GlobalAveragePool_0",
        **{
            f"stage{number + 1}_preact": f"ShuffleNetV2Stage_{number}/BasicUnit_{units - 2}/Concatenation_0"
            for number, units in enumerate(model.blocks)
        },
    }


def margin_norms(model: ShuffleNetV2) -> dict[str, str]:
    """Returns no paths, since a pre-activation depends on BatchNorms of several units.

    >>> margin_norms(ShuffleNetV2())
    {}
    """
    return {}
