"""The CIFAR VGGs of the distillation literature: vgg8, vgg11, vgg13, vgg16 and vgg19, with BatchNorm.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015, as the CIFAR-100
distillation benchmark builds them: five groups of 3×3 convolutions, each with BatchNorm and ReLU; 2×2 max-pooling
behind the first three, and behind the fourth where the image is 64 × 64; the mean over the map; one linear layer.
Parameter counts are exactly the published ones.

Every point that a published method taps is the output of a submodule, so an adapter can name it:

=================  ===================================  ===============
tap                path                                 shape
=================  ===================================  ===============
stem               ``VGGStage_0``                       32 × 32 × 64
stage1             ``VGGStage_1``                       16 × 16 × 128
stage2             ``VGGStage_2``                       8 × 8 × 256
stage3             ``VGGStage_3``                       4 × 4 × 512
stage4             ``VGGStage_4``                       4 × 4 × 512
pooled             ``GlobalAveragePool_0``              512
stage{k}_preact    ``VGGStage_{k}/BatchNorm_{last}``    as stage{k}
=================  ===================================  ===============

The literature counts the first group as the stem. The first six are after the ReLU and before the pooling; ``preact``
is the last BatchNorm's output, which the stage's last ReLU is applied to. `jaxkd.models.taps` gives the table as data.

Equal to the PyTorch recipe: convolutions normal with variance 2 over the window's size times the channels out, and with
biases, which begin at 0 (BatchNorm takes them away again, but they are among the published parameters); BatchNorm with
decay 0.9 and epsilon 1e-5; the linear layer's weight normal with standard deviation 0.01 and its bias 0.
`jaxkd.models.vision.resnet` tells the one thing that differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from jaxkd.models.layers import GlobalAveragePool, batch_norm, check_images, kaiming_normal

if TYPE_CHECKING:
    from jaxtyping import Array, Float

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """A CIFAR VGG.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> model = VGG8(num_classes=100)
    >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    3965028

    Attributes:
      convolutions: how many each of the five groups has.
      num_classes: logits.
      dtype: to compute in, such as ``jnp.bfloat16``; parameters and running statistics stay float32.
    """

    convolutions: Sequence[int]
    num_classes: int = 100
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Logits.

        Args:
          x: normalized images, ``[batch, 32, 32, 3]`` on CIFAR; no side under 8.
          train: whether BatchNorm uses the batch's statistics, and updates the running ones.

        Returns:
          ``[batch, classes]``.

        Raises:
          TypeError: the image is not floating point.
          ValueError: it has no four axes or is too small for three poolings, or there are not five groups.
        """
        if len(self.convolutions) != len(WIDTHS) or min(self.convolutions) < 1:
            raise ValueError(f"convolutions: expected {len(WIDTHS)} numbers of at least 1, got {self.convolutions}.")
        check_images(x)
        if min(x.shape[1:3]) < 8:
            raise ValueError(f"x: expected height and width of at least 8, got {list(x.shape)}: it is halved 3 times.")
        pooled = (0, 1, 2, 3) if x.shape[1] == 64 else (0, 1, 2)
        for number, (convolutions, features) in enumerate(zip(self.convolutions, WIDTHS, strict=True)):
            x = VGGStage(convolutions, features, train=train, dtype=self.dtype)(x)
            if number in pooled:
                x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = GlobalAveragePool()(x)
        return nn.Dense(self.num_classes, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01))(x)


class VGGStage(nn.Module):
    """3×3 convolution, BatchNorm and ReLU, several times."""

    convolutions: int
    features: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width features"]:
        """The last convolution's output, after its BatchNorm and ReLU."""
        for _ in range(self.convolutions):
            x = nn.Conv(self.features, (3, 3), padding=1, dtype=self.dtype, kernel_init=kaiming_normal)(x)
            x = nn.relu(batch_norm(self)(x))
        return x


def taps(model: VGG) -> dict[str, str]:
    """The paths of what methods tap, by our names.

    Args:
      model: of any depth.

    Returns:
      ``stem``, ``stage1`` to ``stage4`` and ``pooled``, after their ReLU, and ``stage1_preact`` to ``stage4_preact``,
      before it.

    >>> taps(VGG13())["stage4"], taps(VGG13())["stage4_preact"]
    ('VGGStage_4', 'VGGStage_4/BatchNorm_1')
    """
    return {
        "stem": "VGGStage_0",
        **{f"stage{number}": f"VGGStage_{number}" for number in range(1, len(WIDTHS))},
        "pooled": "GlobalAveragePool_0",
        **margin_norms(model),
    }


def margin_norms(model: VGG) -> dict[str, str]:
    """The BatchNorm whose scale and bias give overhaul's margin, for each pre-activation tap: here, the tap itself.

    Args:
      model: of any depth.

    Returns:
      ``stage1_preact`` to ``stage4_preact``, each to the path of the stage's last BatchNorm.

    >>> margin_norms(VGG8())["stage1_preact"]
    'VGGStage_1/BatchNorm_0'
    """
    return {
        f"stage{number}_preact": f"VGGStage_{number}/BatchNorm_{model.convolutions[number] - 1}"
        for number in range(1, len(WIDTHS))
    }


VGG8 = partial(VGG, convolutions=(1, 1, 1, 1, 1))
VGG11 = partial(VGG, convolutions=(1, 1, 2, 2, 2))
VGG13 = partial(VGG, convolutions=(2, 2, 2, 2, 2))
VGG16 = partial(VGG, convolutions=(2, 2, 3, 3, 3))
VGG19 = partial(VGG, convolutions=(2, 2, 4, 4, 4))
