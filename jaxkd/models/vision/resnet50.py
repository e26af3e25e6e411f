"""The bottleneck ResNet of the distillation literature for CIFAR: ResNet50, a teacher of 23.7 million parameters.

He et al., "Deep Residual Learning for Image Recognition", 2016, table 1, as the CIFAR-100 distillation benchmark builds
it: the 7×7 stem and the pooling of ImageNet give way to one 3×3 convolution, so that the first stage sees 32 × 32. The
stride of a block is that of its 3×3 convolution, and a shortcut that changes shape is a 1×1 convolution and BatchNorm.

Every point that a published method taps is the output of a submodule, so an adapter can name it:

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

All but ``preact`` are after the ReLU; it is the sum that the stage's last ReLU is applied to.

The initialization is that of `jaxkd.models.vision.resnet`: Kaiming-normal (fan-out) convolutions, the scale of every BatchNorm
1 (also of the last one in a block), the linear layer uniform in ``±1/sqrt(fan_in)``. The one difference that
`jaxkd.models.vision.resnet` tells of, a running variance that is the biased one, is a factor of ``1 - 1/1024`` at most for a
batch of 64 (4 × 4 maps).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from jaxkd.models.layers import GlobalAveragePool, Residual, batch_norm, check_images, classifier, conv
from jaxkd.models.vision.resnet import ResNetStem

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_EXPANSION = 4


class BottleneckResNet(nn.Module):
    """A ResNet of bottleneck blocks for small images.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> model = ResNet50(num_classes=100)
    >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    23705252

    Attributes:
      blocks: in each stage.
      num_filters: channels of each stage's 3×3 convolutions, a quarter of those that it returns. The stem has as many
        as the first.
      num_classes: logits.
      dtype: to compute in, such as ``jnp.bfloat16``; parameters and running statistics stay float32.
    """

    blocks: Sequence[int]
    num_filters: Sequence[int] = (64, 128, 256, 512)
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
          ValueError: it has no four axes, or there are not as many ``blocks`` as ``num_filters``, each 1 or more.
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
        # PyTorch's default: the bias is drawn from the same range as the weight.
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
        """The last block's output, after its ReLU: four times ``features`` channels."""
        for number in range(self.blocks):
            stride = self.stride if number == 0 else 1
            x = Bottleneck(self.features, stride, train=self.train, dtype=self.dtype)(x)
        return x


class Bottleneck(nn.Module):
    """``relu(y + shortcut(x))``, y through a 1×1, a 3×3 and a 1×1 convolution, BatchNorm after each, ReLU between."""

    features: int
    stride: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w outputs"]:
        """The block's output, after its ReLU: four times ``features`` channels."""
        outputs = _EXPANSION * self.features
        y = nn.relu(batch_norm(self)(conv(self.features, 1, 1, self.dtype)(x)))
        y = nn.relu(batch_norm(self)(conv(self.features, 3, self.stride, self.dtype)(y)))
        y = batch_norm(self)(conv(outputs, 1, 1, self.dtype)(y))
        if self.stride != 1 or x.shape[-1] != outputs:
            x = batch_norm(self)(conv(outputs, 1, self.stride, self.dtype)(x))
        return nn.relu(Residual()(y, x))


def taps(model: BottleneckResNet) -> dict[str, str]:
    """Where the model can be tapped: our name for each point, and the path of the submodule whose output it is.

    Args:
      model: of any depth.

    Returns:
      ``stem``, ``stage1`` and on, and ``pooled``, after their ReLU, and ``stage1_preact`` and on, before it.

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
    """The BatchNorm whose bias and scale give each pre-activation's margin in the overhaul of feature distillation.

    Args:
      model: of any depth.

    Returns:
      ``stage1_preact`` and on, and the path of the last BatchNorm of that stage's last block.

    >>> margin_norms(ResNet50())["stage4_preact"]
    'BottleneckStage_3/Bottleneck_2/BatchNorm_2'
    """
    return {f"stage{number + 1}_preact": f"{_last(model, number)}/BatchNorm_2" for number in range(len(model.blocks))}


def _last(model: BottleneckResNet, stage: int) -> str:
    return f"BottleneckStage_{stage}/Bottleneck_{model.blocks[stage] - 1}"


ResNet50 = partial(BottleneckResNet, blocks=(3, 4, 6, 3))
