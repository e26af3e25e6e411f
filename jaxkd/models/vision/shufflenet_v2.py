"""The ShuffleNetV2 of the distillation literature for CIFAR: size 1.

Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", 2018, table 5, as the CIFAR-100
distillation benchmark builds it: the stem is a 1×1 convolution that keeps the map's size.

Every point that a published method taps is the output of a submodule, so an adapter can name it:

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

The first five are after the ReLU. A unit passes half of its channels on as they are, so ``preact`` is these, followed
by what the ReLU of the other half is applied to, before the shuffle: ``stage{k}`` is its ReLU, shuffled.

Convolutions and the linear layer start as PyTorch's do by default, uniform in ``±1/sqrt(fan_in)``, a group's own input
channels counted only. The one difference that `jaxkd.models.vision.resnet` tells of, a running variance that is the biased
one, is a factor of ``1 - 1/1024`` at most for a batch of 64 (4 × 4 maps).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from jaxkd.models.layers import GlobalAveragePool, batch_norm, check_images, classifier, uniform_conv
from jaxkd.models.vision.shufflenet_v1 import STEM, ShuffleNetStem, channel_shuffle, check_stages

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class ShuffleNetV2(nn.Module):
    """A ShuffleNetV2 for small images.

    >>> import jax
    >>> model = ShuffleNetV2(num_classes=100)
    >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    1355528

    Attributes:
      num_filters: channels of each stage, even, and of the 1×1 convolution before the pooling.
      blocks: units in each stage.
      num_classes: logits.
      dtype: to compute in, such as ``jnp.bfloat16``; parameters and running statistics stay float32.
    """

    num_filters: Sequence[int] = (116, 232, 464, 1024)
    blocks: Sequence[int] = (4, 8, 4)
    num_classes: int = 100
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits.

        Args:
          x: normalized images, ``[batch, 32, 32, 3]`` on CIFAR.
          train: whether BatchNorm uses the batch's statistics, and updates the running ones.

        Returns:
          ``[batch, classes]``.

        Raises:
          TypeError: the image is not floating point.
          ValueError: it has no four axes; a stage has not two units, one that halves the map and one that is tapped;
            or its channels do not divide into halves.
        """
        *stages, head = self.num_filters
        check_stages(self.blocks, stages)
        if any(features % 2 for features in stages):
            raise ValueError(f"num_filters: expected stages of even numbers of channels, got {tuple(stages)}.")
        check_images(x)
        options = {"train": train, "dtype": self.dtype}
        x = ShuffleNetStem(STEM, **options)(x)
        for blocks, features in zip(self.blocks, stages, strict=True):
            x = ShuffleNetV2Stage(blocks, features, **options)(x)
        x = ShuffleNetHead(head, **options)(x)
        x = GlobalAveragePool()(x)
        # PyTorch's default: the bias is drawn from the same range as the weight.
        return classifier(self.num_classes, x.shape[-1], self.dtype)(x)


class ShuffleNetV2Stage(nn.Module):
    """A unit that halves the map, then units of the same width."""

    blocks: int
    features: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """The last unit's output, after its ReLU and its shuffle."""
        options = {"train": self.train, "dtype": self.dtype}
        x = DownUnit(self.features, **options)(x)
        for _ in range(self.blocks - 1):
            x = BasicUnit(**options)(x)
        return x


class BasicUnit(nn.Module):
    """The first half of the channels as it is, the second through 1×1, depthwise 3×3 and 1×1; both shuffled.

    BatchNorm follows each convolution, and ReLU those of 1×1.
    """

    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """The unit's output, after its ReLU and its shuffle."""
        kept, y = jnp.split(x, 2, axis=-1)
        features = y.shape[-1]
        y = nn.relu(batch_norm(self)(uniform_conv(features, 1, 1, self.dtype)(y)))
        y = batch_norm(self)(uniform_conv(features, 3, 1, self.dtype, groups=features)(y))
        y = batch_norm(self)(uniform_conv(features, 1, 1, self.dtype)(y))
        Concatenation()(kept, y)  # to be tapped; under jit, nothing computes it unless it is
        return channel_shuffle(jnp.concatenate([kept, nn.relu(y)], axis=-1), 2)


class DownUnit(nn.Module):
    """All channels twice, each to half of the features: through depthwise 3×3 and 1×1, and through 1×1 before that.

    BatchNorm follows each convolution, and ReLU those of 1×1. The depthwise ones halve the map.
    """

    features: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """The unit's output, after its ReLU and its shuffle."""
        inputs, half = x.shape[-1], self.features // 2
        left = batch_norm(self)(uniform_conv(inputs, 3, 2, self.dtype, groups=inputs)(x))
        left = nn.relu(batch_norm(self)(uniform_conv(half, 1, 1, self.dtype)(left)))
        right = nn.relu(batch_norm(self)(uniform_conv(half, 1, 1, self.dtype)(x)))
        right = batch_norm(self)(uniform_conv(half, 3, 2, self.dtype, groups=half)(right))
        right = nn.relu(batch_norm(self)(uniform_conv(half, 1, 1, self.dtype)(right)))
        return channel_shuffle(jnp.concatenate([left, right], axis=-1), 2)


class Concatenation(nn.Module):
    """Channels one after the other, as a module, so that what a stage's last ReLU is applied to has a name."""

    @nn.compact
    def __call__(
        self, first: Float[Array, "batch height width c"], second: Float[Array, "batch height width d"]
    ) -> Float[Array, "batch height width channels"]:
        """``[first, second]``."""
        return jnp.concatenate([first, second], axis=-1)


class ShuffleNetHead(nn.Module):
    """1×1 convolution, BatchNorm, ReLU."""

    features: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width features"]:
        """The map that is pooled, after its ReLU."""
        return nn.relu(batch_norm(self)(uniform_conv(self.features, 1, 1, self.dtype)(x)))


def taps(model: ShuffleNetV2) -> dict[str, str]:
    """Where the model can be tapped: our name for each point, and the path of the submodule whose output it is.

    Args:
      model: of any size.

    Returns:
      ``stem``, ``stage1`` and on, and ``pooled``, after their ReLU, and ``stage1_preact`` and on, before it.

    >>> taps(ShuffleNetV2())["stage2"], taps(ShuffleNetV2())["stage2_preact"]
    ('ShuffleNetV2Stage_1', 'ShuffleNetV2Stage_1/BasicUnit_6/Concatenation_0')
    """
    stages = range(len(model.blocks))
    return {
        "stem": "ShuffleNetStem_0",
        **{f"stage{number + 1}": f"ShuffleNetV2Stage_{number}" for number in stages},
        "pooled": "GlobalAveragePool_0",
        **{
            f"stage{number + 1}_preact": f"ShuffleNetV2Stage_{number}/BasicUnit_{model.blocks[number] - 2}/"
            "Concatenation_0"
            for number in stages
        },
    }


def margin_norms(model: ShuffleNetV2) -> dict[str, str]:
    """None: half of a pre-activation's channels come through units before, from BatchNorms of those.

    Args:
      model: of any size.

    Returns:
      An empty mapping.

    >>> margin_norms(ShuffleNetV2())
    {}
    """
    return {}
