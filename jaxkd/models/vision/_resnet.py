"""ResNets for CIFAR, as in the distillation literature: 8 to 110, 8x4 and 32x4.

He et al., "Deep Residual Learning for Image Recognition", 2016, section 4.2, as the CIFAR-100 distillation benchmark
builds them: a 3×3 stem, three stages of ``(depth - 2) / 6`` basic blocks, a linear layer. A shortcut that changes shape
is a 1×1 convolution and BatchNorm. Parameter counts are exactly the published ones.

Every tap of a published method is the output of a submodule, so that an adapter can name it:

=================  ======================================================  ==================  ==================
tap                path                                                    resnet8 … 110       resnet8x4, 32x4
=================  ======================================================  ==================  ==================
stem               ``ResNetStem_0``                                        32 × 32 × 16        32 × 32 × 32
stage1             ``ResNetStage_0``                                       32 × 32 × 16        32 × 32 × 64
stage2             ``ResNetStage_1``                                       16 × 16 × 32        16 × 16 × 128
stage3             ``ResNetStage_2``                                       8 × 8 × 64          8 × 8 × 256
pooled             ``GlobalAveragePool_0``                                 64                  256
stage{k}_preact    ``ResNetStage_{k-1}/BasicBlock_{last}/Residual_0``      as stage{k}         as stage{k}
=================  ======================================================  ==================  ==================

The first five taps follow the ReLU; ``preact`` is the input of the stage's last ReLU (for activation boundaries,
overhaul, ReviewKD). `jaxkd.models.taps` returns this table.

The model matches the PyTorch recipe: Kaiming-normal (fan-out) convolutions without bias, BatchNorm with decay 0.9 and
epsilon 1e-5, the linear layer's weight and bias uniform in ``±1/sqrt(fan_in)``, and a padding of 1 on every side, also
for a stride of 2 (``"SAME"`` would pad only below and to the right, which shifts the map by half a pixel). One
difference remains: Flax keeps the biased batch variance in BatchNorm's running average, PyTorch the unbiased one (a
factor of ``1 - 1/n``, where n is the batch size times the map's positions, 4096 or more here).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from jaxkd.models._layers import GlobalAveragePool, Residual, batch_norm, check_images, classifier, conv

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class ResNet(nn.Module):
    """ResNet of basic blocks for CIFAR.

    >>> import jax, jax.numpy as jnp
    >>> model = ResNet8x4(num_classes=100)
    >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    1233540

    Attributes:
      depth: number of layers, ``6 n + 2``.
      num_filters: channels of the stem and of each stage.
      num_classes: number of logits.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; parameters and running statistics stay float32.
    """

    depth: int
    num_filters: Sequence[int] = (16, 16, 32, 64)
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
          ValueError: the image does not have four axes, or the depth is none of 8, 14, 20, ….
        """
        blocks = blocks_per_stage(self.depth)
        check_images(x)
        options = {"train": train, "dtype": self.dtype}
        stem, *stages = self.num_filters
        x = ResNetStem(stem, **options)(x)
        for number, features in enumerate(stages):
            x = ResNetStage(blocks, features, stride=1 if number == 0 else 2, **options)(x)
        x = GlobalAveragePool()(x)
        return classifier(self.num_classes, x.shape[-1], self.dtype)(x)


class ResNetStem(nn.Module):
    """3×3 convolution, BatchNorm, ReLU."""

    features: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width features"]:
        """Returns the stem's output, after its ReLU."""
        x = conv(self.features, 3, 1, self.dtype)(x)
        return nn.relu(batch_norm(self)(x))


class ResNetStage(nn.Module):
    """Basic blocks of one width; the first may halve the map."""

    blocks: int
    features: int
    stride: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the last block's output, after its ReLU."""
        for number in range(self.blocks):
            stride = self.stride if number == 0 else 1
            x = BasicBlock(self.features, stride, train=self.train, dtype=self.dtype)(x)
        return x


class BasicBlock(nn.Module):
    """``relu(BN(conv(relu(BN(conv(x))))) + shortcut(x))``."""

    features: int
    stride: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the block's output, after its ReLU."""
        y = conv(self.features, 3, self.stride, self.dtype)(x)
        y = nn.relu(batch_norm(self)(y))
        y = batch_norm(self)(conv(self.features, 3, 1, self.dtype)(y))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = batch_norm(self)(conv(self.features, 1, self.stride, self.dtype)(x))
        return nn.relu(Residual()(y, x))


def taps(model: ResNet) -> dict[str, str]:
    """Returns the path of each tapped submodule, by the name of its tap.

    >>> taps(ResNet32())["stage3_preact"]
    'ResNetStage_2/BasicBlock_4/Residual_0'
    """
    blocks = _last_blocks(model)
    return {
        "stem": "ResNetStem_0",
        **{f"stage{number + 1}": f"ResNetStage_{number}" for number in range(len(blocks))},
        "pooled": "GlobalAveragePool_0",
        **{f"stage{number}_preact": f"{block}/Residual_0" for number, block in enumerate(blocks, 1)},
    }


def margin_norms(model: ResNet) -> dict[str, str]:
    """Returns the path of the BatchNorm that gives each pre-activation tap's margin.

    The tap is a sum, and the margin is that of its residual branch alone, as in the authors' code: of the second
    BatchNorm of the stage's last block.

    >>> margin_norms(ResNet32())["stage3_preact"]
    'ResNetStage_2/BasicBlock_4/BatchNorm_1'
    """
    return {f"stage{number}_preact": f"{block}/BatchNorm_1" for number, block in enumerate(_last_blocks(model), 1)}


def blocks_per_stage(depth: int) -> int:
    """Returns n, the number of blocks per stage of ``6 n + 2`` layers, or raises.

    >>> blocks_per_stage(56)
    9
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth: expected 6 n + 2 with n >= 1 (8, 14, 20, 32, 44, 56, 110, …), got {depth}.")
    return blocks


def _last_blocks(model: ResNet) -> list[str]:
    last = blocks_per_stage(model.depth) - 1
    return [f"ResNetStage_{number}/BasicBlock_{last}" for number in range(len(model.num_filters) - 1)]


_WIDER = (32, 64, 128, 256)

ResNet8 = partial(ResNet, depth=8)
ResNet14 = partial(ResNet, depth=14)
ResNet20 = partial(ResNet, depth=20)
ResNet32 = partial(ResNet, depth=32)
ResNet44 = partial(ResNet, depth=44)
ResNet56 = partial(ResNet, depth=56)
ResNet110 = partial(ResNet, depth=110)
ResNet8x4 = partial(ResNet, depth=8, num_filters=_WIDER)
ResNet32x4 = partial(ResNet, depth=32, num_filters=_WIDER)
