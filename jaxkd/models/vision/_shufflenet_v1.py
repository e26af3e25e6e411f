"""ShuffleNetV1 for CIFAR, as in the distillation literature: 3 groups, width 1.

Zhang et al., "ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices", 2018, table 1, as
the CIFAR-100 distillation benchmark builds it. It differs from the paper's network: the stem is a 1×1 convolution that
keeps the map's size; a ReLU follows the depthwise convolution too; a unit's inner channels are a quarter of its
branch's output channels, also where the branch is concatenated to the shortcut (``(240 - 24) / 4`` in the first unit).

Every tap of a published method is the output of a submodule, so that an adapter can name it:

=================  ==========================================================  ==================
tap                path                                                        three groups
=================  ==========================================================  ==================
stem               ``ShuffleNetStem_0``                                        32 × 32 × 24
stage1             ``ShuffleNetV1Stage_0``                                     16 × 16 × 240
stage2             ``ShuffleNetV1Stage_1``                                     8 × 8 × 480
stage3             ``ShuffleNetV1Stage_2``                                     4 × 4 × 960
pooled             ``GlobalAveragePool_0``                                     960
stage{k}_preact    ``ShuffleNetV1Stage_{k-1}/ShuffleUnit_{last}/Residual_0``   as stage{k}
=================  ==========================================================  ==================

The first five taps follow the ReLU; ``preact`` is the input of the stage's last ReLU.

Convolutions and the linear layer have PyTorch's default initialization, uniform in ``±1/sqrt(fan_in)``, where the
fan-in of a grouped convolution is that of one group. The biased running variance, explained in
the module of `ResNet`, differs by a factor of ``1 - 1/1024`` at most for a batch of 64 (4 × 4 maps).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from jaxkd.models._layers import GlobalAveragePool, Residual, batch_norm, check_images, classifier, uniform_conv

if TYPE_CHECKING:
    from jaxtyping import Array, Float

STEM = 24


class ShuffleNetV1(nn.Module):
    """ShuffleNetV1 for small images.

    >>> import jax
    >>> model = ShuffleNetV1(num_classes=100)
    >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    949258

    Attributes:
      groups: groups of the 1×1 convolutions, except the first one.
      num_filters: output channels of each stage.
      blocks: number of units in each stage.
      num_classes: number of logits.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; parameters and running statistics stay float32.
    """

    groups: int = 3
    num_filters: Sequence[int] = (240, 480, 960)
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
            one that is tapped; or its channels do not divide into quarters and groups.
        """
        check_stages(self.blocks, self.num_filters)
        check_images(x)
        options = {"train": train, "dtype": self.dtype}
        x = ShuffleNetStem(STEM, **options)(x)
        for number, (blocks, features) in enumerate(zip(self.blocks, self.num_filters, strict=True)):
            # The stem has few channels, so that the paper does not group the convolution after it.
            first_groups = 1 if number == 0 else self.groups
            x = ShuffleNetV1Stage(blocks, features, self.groups, first_groups, **options)(x)
        x = GlobalAveragePool()(x)
        return classifier(self.num_classes, x.shape[-1], self.dtype)(x)


class ShuffleNetStem(nn.Module):
    """1×1 convolution, BatchNorm, ReLU."""

    features: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width features"]:
        """Returns the stem's output, after its ReLU."""
        return nn.relu(batch_norm(self)(uniform_conv(self.features, 1, 1, self.dtype)(x)))


class ShuffleNetV1Stage(nn.Module):
    """Units of one width; the first halves the map."""

    blocks: int
    features: int
    groups: int
    first_groups: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the last unit's output, after its ReLU."""
        for number in range(self.blocks):
            stride, first_groups = (2, self.first_groups) if number == 0 else (1, self.groups)
            options = {"train": self.train, "dtype": self.dtype}
            x = ShuffleUnit(self.features, stride, self.groups, first_groups, **options)(x)
        return x


class ShuffleUnit(nn.Module):
    """Grouped 1×1 convolution, channel shuffle, depthwise 3×3 and grouped 1×1.

    BatchNorm follows each convolution, and ReLU the first two. The input is added. Where the map is halved, the input
    is averaged over 3×3 and concatenated instead.
    """

    features: int
    stride: int
    groups: int
    first_groups: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the unit's output, after its ReLU."""
        branch = self.features if self.stride == 1 else self.features - x.shape[-1]
        inside, rest = divmod(branch, 4)
        if inside < 1 or rest or any(part % self.groups for part in (inside, branch)):
            raise ValueError(
                f"num_filters: expected more channels than the input's {x.shape[-1]}, by a difference that divides "
                f"into quarters of {self.groups} groups, got {self.features}."
            )
        y = nn.relu(batch_norm(self)(uniform_conv(inside, 1, 1, self.dtype, groups=self.first_groups)(x)))
        y = channel_shuffle(y, self.first_groups)
        y = nn.relu(batch_norm(self)(uniform_conv(inside, 3, self.stride, self.dtype, groups=inside)(y)))
        y = batch_norm(self)(uniform_conv(branch, 1, 1, self.dtype, groups=self.groups)(y))
        if self.stride == 1:
            return nn.relu(Residual()(y, x))
        # As in PyTorch, the average at a border includes the zeros of the padding.
        x = nn.avg_pool(x, (3, 3), strides=(self.stride, self.stride), padding=((1, 1), (1, 1)))
        return nn.relu(jnp.concatenate([y, x], axis=-1))


def channel_shuffle(
    x: Float[Array, "batch height width channels"], groups: int
) -> Float[Array, "batch height width channels"]:
    """Permutes channels so that each group of the next convolution reads every group.

    Channel ``j`` of group ``i`` becomes channel ``j · groups + i``.

    >>> channel_shuffle(jnp.arange(6).reshape(1, 1, 1, 6), 2).ravel()
    Array([0, 3, 1, 4, 2, 5], dtype=int32)
    """
    return x.reshape(*x.shape[:-1], groups, -1).swapaxes(-1, -2).reshape(x.shape)


def taps(model: ShuffleNetV1) -> dict[str, str]:
    """Returns the path of each tapped submodule, by the name of its tap.

    >>> taps(ShuffleNetV1())["stage2"], taps(ShuffleNetV1())["stage2_preact"]
    ('ShuffleNetV1Stage_1', 'ShuffleNetV1Stage_1/ShuffleUnit_7/Residual_0')
    """
    stages = range(len(model.blocks))
    return {
        "stem": "ShuffleNetStem_0",
        **{f"stage{number + 1}": f"ShuffleNetV1Stage_{number}" for number in stages},
        "pooled": "GlobalAveragePool_0",
        **{f"stage{number + 1}_preact": f"{_last(model, number)}/Residual_0" for number in stages},
    }


def margin_norms(model: ShuffleNetV1) -> dict[str, str]:
    """Returns the path of the BatchNorm that gives each pre-activation tap's margin.

    The benchmark has no ShuffleNet teacher for that method; this follows the rule for its ResNets.

    >>> margin_norms(ShuffleNetV1())["stage2_preact"]
    'ShuffleNetV1Stage_1/ShuffleUnit_7/BatchNorm_2'
    """
    return {f"stage{number + 1}_preact": f"{_last(model, number)}/BatchNorm_2" for number in range(len(model.blocks))}


def _last(model: ShuffleNetV1, stage: int) -> str:
    return f"ShuffleNetV1Stage_{stage}/ShuffleUnit_{model.blocks[stage] - 1}"


def check_stages(blocks: Sequence[int], num_filters: Sequence[int]) -> None:
    """Raises unless there are two or more units for each stage."""
    if len(blocks) != len(num_filters) or min(blocks, default=0) < 2:
        raise ValueError(
            f"blocks: expected a number of at least 2 for each of the stages {tuple(num_filters)}, got {tuple(blocks)}."
        )
