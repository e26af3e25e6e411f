"""The CIFAR wide residual networks of the distillation literature: wrn_16_1, wrn_16_2, wrn_40_1 and wrn_40_2.

Zagoruyko and Komodakis, "Wide Residual Networks", 2016, as the CIFAR-100 distillation benchmark builds them: a 3×3
convolution, three stages of ``(depth - 4) / 6`` pre-activation blocks, a last BatchNorm and ReLU, a linear layer.
Parameter counts are exactly the published ones.

Every point that a published method taps is the output of a submodule, so an adapter can name it. For a width k:

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

The network is pre-activation, so the stem and the stages are raw: what a block adds up, with no BatchNorm and no ReLU
behind it. That is what the literature taps. The BatchNorm that follows a stage stands in the next stage's first block,
and for the last stage in the head; ``preact`` is its output, which a ReLU is applied to. `jaxkd.models.taps` gives the
table as data.

Equal to the PyTorch recipe: convolutions without bias, normal with variance 2 over the window's size times the channels
out, a padding of 1 on every side also where the stride is 2, BatchNorm with decay 0.9 and epsilon 1e-5, the linear
layer's weight uniform in ``±1/sqrt(fan_in)`` and its bias 0, no dropout. `jaxkd.models.vision.resnet` tells the one thing that
differs.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from jaxkd.models.layers import GlobalAveragePool, batch_norm, check_images, conv, uniform_fan_in

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class WideResNet(nn.Module):
    """A CIFAR wide residual network.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> model = WRN40x2(num_classes=100)
    >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    2255156

    Attributes:
      depth: ``6 n + 4``.
      width: how many times as wide as a ResNet's the stages are; the stem always has 16 channels.
      num_classes: logits.
      dtype: to compute in, such as ``jnp.bfloat16``; parameters and running statistics stay float32.
    """

    depth: int
    width: int = 1
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
          ValueError: it has no four axes, or the depth is none of 10, 16, 22, ….
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
        """The last block's sum, as it is."""
        for number in range(self.blocks):
            stride = self.stride if number == 0 else 1
            x = WideBlock(self.features, stride, train=self.train, dtype=self.dtype)(x)
        return x


class WideBlock(nn.Module):
    """``conv(relu(BN(conv(relu(BN(x)))))) + shortcut``.

    The shortcut is x itself where the channels stay, and otherwise a 1×1 convolution of ``relu(BN(x))``: there, both
    branches share the activation.
    """

    features: int
    stride: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """The sum, with no BatchNorm and no ReLU behind it."""
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
        """``relu(BN(x))``."""
        return nn.relu(batch_norm(self)(x))


def taps(model: WideResNet) -> dict[str, str]:
    """The paths of what methods tap, by our names.

    Args:
      model: of any depth and width.

    Returns:
      ``stem``, ``stage1`` to ``stage3``, ``pooled``, and ``stage1_preact`` to ``stage3_preact``.

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
    """The BatchNorm whose scale and bias give overhaul's margin, for each pre-activation tap: here, the tap itself.

    Args:
      model: of any depth and width.

    Returns:
      ``stage1_preact`` to ``stage3_preact``, each to the path of the BatchNorm that follows the stage.

    >>> margin_norms(WRN16x2())["stage3_preact"]
    'WideResNetHead_0/BatchNorm_0'
    """
    return {
        "stage1_preact": "WideResNetStage_1/WideBlock_0/BatchNorm_0",
        "stage2_preact": "WideResNetStage_2/WideBlock_0/BatchNorm_0",
        "stage3_preact": "WideResNetHead_0/BatchNorm_0",
    }


def blocks_per_stage(depth: int) -> int:
    """The blocks in each of the three stages.

    Args:
      depth: ``6 n + 4``.

    Returns:
      n.

    Raises:
      ValueError: the depth is none of 10, 16, 22, ….

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
