"""Poses by heatmaps: a network of images.

Xiao, Wu & Wei, "Simple Baselines for Human Pose Estimation and Tracking", ECCV 2018: a backbone, a few layers that
return to a high resolution, and a 1×1 convolution to a heatmap of each joint, here on a pyramid of feature maps, whose
levels are summed in the resolution of the finest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn

from jaxkd.models._layers import batch_norm, conv
from jaxkd.models.dense._backbone import PyramidBackbone, repeated

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class PoseNetwork(nn.Module):
    """Heatmaps of joints from a pyramid of feature maps.

    Attributes:
      joints: number of joints.
      widths: channels of each stage of the backbone.
      channels: channels of the pyramid and of the head.
      blocks: number of basic blocks of a stage.
      stride: pixels between neighboring positions of the heatmaps, a power of two.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; parameters and running statistics stay float32.

    >>> import jax, jax.numpy as jnp
    >>> model = PoseNetwork(joints=14, widths=(8, 16), channels=8)
    >>> image = jnp.zeros((1, 96, 90, 3))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
    >>> {name: x.shape[1:] for name, x in jax.eval_shape(model.apply, variables, image).items()}
    {'feature': (24, 23, 8), 'heatmaps': (24, 23, 14), 'level0': (24, 23, 8), 'level1': (12, 12, 8)}
    """

    joints: int
    widths: Sequence[int] = (16, 32, 64, 128)
    channels: int = 64
    blocks: int = 1
    stride: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], train: bool = False) -> dict[str, Array]:
        """Returns heatmaps, the head's feature and the levels of normalized images.

        The images are ``[batch, h, w, channels]``. The ``heatmaps`` are ``[batch, ceil(h / stride), ceil(w / stride),
        joints]``, float32, the ``feature`` is that of which they are made, and ``level0``, ``level1``, … are the levels
        of `PyramidBackbone`. With ``train``, BatchNorm uses the batch's statistics and updates the running ones.

        Raises:
          TypeError: the image is not floating point.
          ValueError: the image does not have four axes, or a field has a value that it cannot have.
        """
        check_joints(self.joints)
        levels = PyramidBackbone(self.widths, self.channels, self.blocks, self.stride, self.dtype)(x, train)
        feature = PoseHead(self.channels, train, self.dtype)(list(levels.values()))
        return {"heatmaps": to_joints(self.joints, self.dtype)(feature).astype("float32"), "feature": feature, **levels}


class PoseHead(nn.Module):
    """Sum of all levels in the finest resolution, 3×3 convolution, BatchNorm, ReLU."""

    channels: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, levels: Sequence[Float[Array, "batch _ _ channels"]]) -> Float[Array, "batch h w channels"]:
        """Returns the feature of which the heatmaps are made."""
        x = levels[-1]
        for level in levels[-2::-1]:
            x = level + repeated(x, level.shape[1], level.shape[2])
        return nn.relu(batch_norm(self)(conv(self.channels, 3, 1, self.dtype)(nn.relu(x))))


def to_joints(joints: int, dtype: Any) -> nn.Conv:
    """Builds the 1×1 convolution to heatmaps.

    They begin near zero, as nearly every position of a true one is.
    """
    return nn.Conv(joints, (1, 1), dtype=dtype, kernel_init=nn.initializers.normal(0.01), name="to_joints")


def check_joints(joints: int) -> None:
    """Raises unless there is a joint."""
    if joints < 1:
        raise ValueError(f"joints: expected at least 1, got {joints}.")
