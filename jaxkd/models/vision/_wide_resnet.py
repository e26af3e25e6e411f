"""Wide ResNets for CIFAR, as in the distillation literature: WRN-16-1 to WRN-40-2.

Zagoruyko and Komodakis, "Wide Residual Networks", 2016, as the CIFAR-100 distillation benchmark builds them: a 3×3
convolution, three stages of ``(depth - 4) / 6`` pre-activation blocks, a last BatchNorm and ReLU, a linear layer.
Parameter counts are exactly the published ones.

Every tap of a published method is the output of a submodule, so that an adapter can name it. For a width k:

=================  ==================================================  =================
tap                path                                                shape
=================  ==================================================  =================
stem               ``Conv_0``                                          32 × 32 × 16
stage1             ``WideResNetStage_0``                               32 × 32 × 16 k
stage2             ``WideResNetStage_1``                               16 × 16 × 32 k
stage3             ``WideResNetStage_2``                               8 × 8 × 64 k
pooled             ``GlobalAveragePool_0``                             64 k
stage{1,2}_preact  ``WideResNetStage_{1,2}/WideBlock_0/BatchNorm_0``   as stage{1,2}
stage3_preact      ``WideResNetHead_0/BatchNorm_0``                    as stage3
=================  ==================================================  =================

The blocks are pre-activation, so that the stem and the stages, as the literature taps them, are sums that no BatchNorm
or ReLU follows. The BatchNorm after a stage belongs to the next stage's first block, and after the last stage to the
head; ``preact`` is its output, the input of a ReLU. `jaxkd.models.taps` returns this table.

The model matches the PyTorch recipe: convolutions without bias, normal with variance 2 over the window's size times the
output channels, a padding of 1 on every side, also for a stride of 2, BatchNorm with decay 0.9 and epsilon 1e-5, the
linear layer's weight uniform in ``±1/sqrt(fan_in)`` and its bias 0, no dropout. The module of `ResNet` explains the one
difference.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from jaxkd.models._layers import GlobalAveragePool, batch_norm, check_images, conv, uniform_fan_in

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class WideResNet(nn.Module):
    """Wide residual network for CIFAR.

    >>> import jax, jax.numpy as jnp
    >>> model = WRN40x2(num_classes=100)
    >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    2255156

    Attributes:
      depth: number of layers, ``6 n + 4``.
      width: ratio of the stages' channels to those of a ResNet; the stem always has 16 channels.
      num_classes: number of logits.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; parameters and running statistics stay float32.
    """

    depth: int
    width: int = 1
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
          ValueError: the image does not have four axes, or the depth is none of 10, 16, 22, ….
        """
        blocks = blocks_per_stage(self.depth)
        check_images(x)
        x = conv(16, 3, 1, self.dtype)(x)
        for number, features in enumerate((16, 32, 64)):
            stride = 1 if number == 0 else 2
            x = WideResNetStage(blocks, self.width * features, stride, train=train, dtype=self.dtype)(x)
        x = WideResNetHead(train=train, dtype=self.dtype)(x)
        x = GlobalAveragePool()(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=uniform_fan_in)(x)


class WideResNetStage(nn.Module):
    """Pre-activation blocks of one width; the first may halve the map."""

    blocks: int
    features: int
    stride: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the last block's sum, which no ReLU follows."""
        for number in range(self.blocks):
            stride = self.stride if number == 0 else 1
            x = WideBlock(self.features, stride, train=self.train, dtype=self.dtype)(x)
        return x


class WideBlock(nn.Module):
    """``conv(relu(BN(conv(relu(BN(x)))))) + shortcut``.

    The shortcut is x itself if the number of channels stays; otherwise it is a 1×1 convolution of ``relu(BN(x))``, an
    activation that both branches share.
    """

    features: int
    stride: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the sum, which no BatchNorm or ReLU follows."""
        active = nn.relu(batch_norm(self)(x))
        y = conv(self.features, 3, self.stride, self.dtype)(active)
        y = nn.relu(batch_norm(self)(y))
        y = conv(self.features, 3, 1, self.dtype)(y)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, self.stride, self.dtype)(active)
        return y + x


class WideResNetHead(nn.Module):
    """The last BatchNorm and ReLU."""

    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        """Returns ``relu(BN(x))``."""
        return nn.relu(batch_norm(self)(x))


def taps(model: WideResNet) -> dict[str, str]:
    """Returns the path of each tapped submodule, by the name of its tap.

    >>> taps(WRN16x2())["stage2_preact"]
    'WideResNetStage_2/WideBlock_0/BatchNorm_0'
    """
    return {
        "stem": "Conv_0",
        **{f"stage{number + 1}": f"WideResNetStage_{number}" for number in range(3)},
        "pooled": "GlobalAveragePool_0",
        **margin_norms(model),
    }


def margin_norms(model: WideResNet) -> dict[str, str]:
    """Returns the path of the BatchNorm that gives each pre-activation tap's margin.

    >>> margin_norms(WRN16x2())["stage3_preact"]
    'WideResNetHead_0/BatchNorm_0'
    """
    return {
        "stage1_preact": "WideResNetStage_1/WideBlock_0/BatchNorm_0",
        "stage2_preact": "WideResNetStage_2/WideBlock_0/BatchNorm_0",
        "stage3_preact": "WideResNetHead_0/BatchNorm_0",
    }


def blocks_per_stage(depth: int) -> int:
    """Returns n, the number of blocks per stage of ``6 n + 4`` layers, or raises.

    >>> blocks_per_stage(40)
    6
    """
    blocks, rest = divmod(depth - 4, 6)
    if rest or blocks < 1:
        raise ValueError(f"depth: expected 6 n + 4 with n >= 1 (10, 16, 22, 28, 40, …), got {depth}.")
    return blocks


WRN16x1 = partial(WideResNet, depth=16, width=1)
WRN16x2 = partial(WideResNet, depth=16, width=2)
WRN40x1 = partial(WideResNet, depth=40, width=1)
WRN40x2 = partial(WideResNet, depth=40, width=2)
