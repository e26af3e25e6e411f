"""VGGs for CIFAR, as in the distillation literature: vgg8 to vgg19 with BatchNorm.

Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015, as the CIFAR-100
distillation benchmark builds them: five stages of 3×3 convolutions, each with BatchNorm and ReLU; 2×2 max-pooling
after the first three stages, and after the fourth for images of 64 × 64; the mean over the map; one linear layer.
Parameter counts are exactly the published ones.

Every tap of a published method is the output of a submodule, so that an adapter can name it:

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

The literature calls the first stage the stem. The first six taps follow the ReLU and precede the pooling; ``preact`` is
the output of the stage's last BatchNorm, the input of its last ReLU. `jaxkd.models.taps` returns this table.

The model matches the PyTorch recipe: convolutions normal with variance 2 over the window's size times the output
channels, and with biases initialized to 0 (BatchNorm cancels them, but they are among the published parameters);
BatchNorm with decay 0.9 and epsilon 1e-5; the linear layer's weight normal with standard deviation 0.01 and its bias 0.
The module of `ResNet` explains the one difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from jaxkd.models._layers import GlobalAveragePool, batch_norm, check_images, kaiming_normal

if TYPE_CHECKING:
    from jaxtyping import Array, Float

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """VGG with BatchNorm for CIFAR.

    >>> import jax, jax.numpy as jnp
    >>> model = VGG8(num_classes=100)
    >>> image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    >>> params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    3965028

    Attributes:
      convolutions: number of convolutions in each of the five stages.
      num_classes: number of logits.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; parameters and running statistics stay float32.
    """

    convolutions: Sequence[int]
    num_classes: int = 100
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width channels"], train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns logits of normalized images ``[batch, height, width, channels]``.

        The images are 32 × 32 × 3 on CIFAR, at least 8 × 8. With ``train``, BatchNorm uses the batch's statistics and
        updates the running ones.

        Raises:
          TypeError: the image is not floating point.
          ValueError: the image does not have four axes or is too small for three poolings, or the stages are not five.
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
    """A sequence of 3×3 convolutions, each with BatchNorm and ReLU."""

    convolutions: int
    features: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width features"]:
        """Returns the last convolution's output, after its BatchNorm and ReLU."""
        for _ in range(self.convolutions):
            x = nn.Conv(self.features, (3, 3), padding=1, dtype=self.dtype, kernel_init=kaiming_normal)(x)
            x = nn.relu(batch_norm(self)(x))
        return x


def taps(model: VGG) -> dict[str, str]:
    """Returns the path of each tapped submodule, by the name of its tap.

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
    """Returns the path of the BatchNorm that gives each pre-activation tap's margin.

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
