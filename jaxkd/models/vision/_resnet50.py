"""ResNet50 for CIFAR, as in the distillation literature: 23.7 million parameters.

He et al., "Deep Residual Learning for Image Recognition", 2016, table 1, as the CIFAR-100 distillation benchmark builds
it: one 3×3 convolution replaces the 7×7 stem and the pooling for ImageNet, so that the first stage's map is 32 × 32.
A block's stride is that of its 3×3 convolution, and a shortcut that changes shape is a 1×1 convolution and BatchNorm.

Every tap of a published method is the output of a submodule, so that an adapter can name it:

=================  ======================================================  ==================
tap                path                                                    ResNet50
=================  ======================================================  ==================
stem               ``ResNetStem_0``                                        32 × 32 × 64
stage1             ``BottleneckStage_0``                                   32 × 32 × 256
stage2             ``BottleneckStage_1``                                   16 × 16 × 512
stage3             ``BottleneckStage_2``                                   8 × 8 × 1024
stage4             ``BottleneckStage_3``                                   4 × 4 × 2048
pooled             ``GlobalAveragePool_0``                                 2048
stage{k}_preact    ``BottleneckStage_{k-1}/Bottleneck_{last}/Residual_0``  as stage{k}
=================  ======================================================  ==================

All taps but ``preact`` follow the ReLU; ``preact`` is the input of the stage's last ReLU.

The initialization is that of `ResNet`: Kaiming-normal (fan-out) convolutions, a scale of 1 in
every BatchNorm (also the last one of a block), a linear layer uniform in ``±1/sqrt(fan_in)``. The biased running
variance, explained in its module, differs by a factor of ``1 - 1/1024`` at most for a batch of 64 (4 × 4 maps).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from jaxkd.models._layers import GlobalAveragePool, Residual, batch_norm, check_images, classifier, conv
from jaxkd.models.vision._resnet import ResNetStem

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_EXPANSION = 4


class BottleneckResNet(nn.Module):
    """ResNet of bottleneck blocks for small images.

    >>> import jax, jax.numpy as jnp
    >>> model = ResNet50(num_classes=100)
    >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    23705252

    Attributes:
      blocks: number of blocks in each stage.
      num_filters: channels of each stage's 3×3 convolutions, a quarter of the stage's output channels. The stem has as
        many as the first stage's.
      num_classes: number of logits.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; parameters and running statistics stay float32.
    """

    blocks: Sequence[int]
    num_filters: Sequence[int] = (64, 128, 256, 512)
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
          ValueError: the image does not have four axes, or ``blocks`` and ``num_filters`` differ in length.
        """
        if len(self.blocks) != len(self.num_filters) or min(self.blocks, default=0) < 1:
            raise ValueError(
                f"blocks: expected a number of at least 1 for each of num_filters={tuple(self.num_filters)}, got "
                f"{tuple(self.blocks)}."
            )
        check_images(x)
        options = {"train": train, "dtype": self.dtype}
        x = ResNetStem(self.num_filters[0], **options)(x)
        for number, (blocks, features) in enumerate(zip(self.blocks, self.num_filters, strict=True)):
            x = BottleneckStage(blocks, features, stride=1 if number == 0 else 2, **options)(x)
        x = GlobalAveragePool()(x)
        return classifier(self.num_classes, x.shape[-1], self.dtype)(x)


class BottleneckStage(nn.Module):
    """Bottleneck blocks of one width; the first may halve the map."""

    blocks: int
    features: int
    stride: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w outputs"]:
        """Returns the last block's output after its ReLU, ``4 · features`` channels."""
        for number in range(self.blocks):
            stride = self.stride if number == 0 else 1
            x = Bottleneck(self.features, stride, train=self.train, dtype=self.dtype)(x)
        return x


class Bottleneck(nn.Module):
    """``relu(y + shortcut(x))``, with y a 1×1, a 3×3 and a 1×1 convolution of x.

    BatchNorm follows each convolution, and ReLU the first two.
    """

    features: int
    stride: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w outputs"]:
        """Returns the block's output after its ReLU, ``4 · features`` channels."""
        outputs = _EXPANSION * self.features
        y = nn.relu(batch_norm(self)(conv(self.features, 1, 1, self.dtype)(x)))
        y = nn.relu(batch_norm(self)(conv(self.features, 3, self.stride, self.dtype)(y)))
        y = batch_norm(self)(conv(outputs, 1, 1, self.dtype)(y))
        if self.stride != 1 or x.shape[-1] != outputs:
            x = batch_norm(self)(conv(outputs, 1, self.stride, self.dtype)(x))
        return nn.relu(Residual()(y, x))


def taps(model: BottleneckResNet) -> dict[str, str]:
    """Returns the path of each tapped submodule, by the name of its tap.

    >>> taps(ResNet50())["stage4"], taps(ResNet50())["stage4_preact"]
    ('BottleneckStage_3', 'BottleneckStage_3/Bottleneck_2/Residual_0')
    """
    stages = range(len(model.blocks))
    return {
        "stem": "ResNetStem_0",
        **{f"stage{number + 1}": f"BottleneckStage_{number}" for number in stages},
        "pooled": "GlobalAveragePool_0",
        **{f"stage{number + 1}_preact": f"{_last(model, number)}/Residual_0" for number in stages},
    }


def margin_norms(model: BottleneckResNet) -> dict[str, str]:
    """Returns the path of the BatchNorm that gives each pre-activation tap's margin.

    >>> margin_norms(ResNet50())["stage4_preact"]
    'BottleneckStage_3/Bottleneck_2/BatchNorm_2'
    """
    return {f"stage{number + 1}_preact": f"{_last(model, number)}/BatchNorm_2" for number in range(len(model.blocks))}


def _last(model: BottleneckResNet, stage: int) -> str:
    return f"BottleneckStage_{stage}/Bottleneck_{model.blocks[stage] - 1}"


ResNet50 = partial(BottleneckResNet, blocks=(3, 4, 6, 3))
