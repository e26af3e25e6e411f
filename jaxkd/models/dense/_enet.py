"""A small segmenter of bottlenecks: dilated, asymmetric, shrinking and growing.

Paszke et al., "ENet: A Deep Neural Network Architecture for Real-Time Semantic Segmentation", 2016, section 3 and table
1: an initial block, three stages of bottlenecks that encode at an eighth of the image's resolution, two that decode.

=================  ================================================  ==========  ============
part               bottlenecks                                       resolution  channels
=================  ================================================  ==========  ============
initial block      3×3 convolution of stride 2, maxima of 2×2        1/2         ``widths[0]``
stage 1            down, four regular ones                           1/4         ``widths[1]``
stages 2 and 3     down (only once), regular, dilated by 2,          1/8         ``widths[2]``
                   asymmetric, dilated by 4, regular, dilated by 8,
                   asymmetric, dilated by 16
stage 4            up, two regular ones                              1/4         ``widths[1]``
stage 5            up, a regular one                                 1/2         ``widths[0]``
=================  ================================================  ==========  ============

A transposed convolution of stride 2 makes the logits. Three things differ from the paper: the shortcut of a growing
bottleneck repeats the nearest position, where the paper puts it at the place of the maximum that the encoder took; no
channels are dropped in training; and images may be of any size, since a shrinking bottleneck makes maps of
``ceil(size / 2)`` and a growing one cuts its map to the encoder's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from jaxkd.models._layers import batch_norm, check_images, kaiming_normal
from jaxkd.models.dense._backbone import repeated
from jaxkd.models.dense._segmenter import check_classes

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_STAGE = ("regular", 2, "asymmetric", 4, "regular", 8, "asymmetric", 16)
"""Kinds of the bottlenecks of the stages 2 and 3; a number is the dilation of its convolution."""


class ENet(nn.Module):
    """Segmenter of bottlenecks, with logits at the size of the image.

    Attributes:
      num_classes: number of classes, of which there are as many logits.
      widths: channels at a half, a quarter and an eighth of the image's resolution.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; parameters and running statistics stay float32.

    >>> import jax
    >>> model = ENet(num_classes=5, widths=(8, 16, 32))
    >>> image = jnp.zeros((1, 30, 41, 3))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
    >>> {name: x.shape[1:] for name, x in jax.eval_shape(model.apply, variables, image).items()}
    {'level0': (15, 21, 8), 'level1': (8, 11, 16), 'level2': (4, 6, 32), 'logits': (30, 41, 5)}
    """

    num_classes: int
    widths: Sequence[int] = (16, 64, 128)
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], train: bool = False) -> dict[str, Array]:
        """Returns ``logits`` and levels of normalized images.

        Images are ``[batch, height, width, channels]``, of any size. The logits are ``[batch, height, width,
        classes]``. The levels are the decoder's maps ``level0`` and ``level1``, of strides 2 and 4, and the encoder's
        last one ``level2``, of stride 8. With ``train``, BatchNorm uses the batch's statistics and updates the running
        ones.

        Raises:
          TypeError: the image is not floating point.
          ValueError: the image does not have four axes, or a field has a value that it cannot have.
        """
        check_images(x)
        check_classes(self.num_classes)
        if len(self.widths) != 3 or self.widths[0] <= x.shape[-1] or min(self.widths) < 4:
            raise ValueError(
                f"widths: expected three numbers of at least 4, of which the first is more than the {x.shape[-1]} "
                f"channels of the image, got {tuple(self.widths)}."
            )
        first, second, third = self.widths
        options = {"train": train, "dtype": self.dtype}
        half = InitialBlock(first, **options)(x)
        quarter = Bottleneck(second, "down", **options)(half)
        for _ in range(4):
            quarter = Bottleneck(second, **options)(quarter)
        encoded = Bottleneck(third, "down", **options)(quarter)
        for kind in _STAGE * 2:
            encoded = Bottleneck(third, kind, **options)(encoded)
        level1 = Bottleneck(second, "up", size=quarter.shape[1:3], **options)(encoded)
        for _ in range(2):
            level1 = Bottleneck(second, **options)(level1)
        level0 = Bottleneck(first, "up", size=half.shape[1:3], **options)(level1)
        level0 = Bottleneck(first, **options)(level0)
        logits = nn.ConvTranspose(self.num_classes, (3, 3), (2, 2), dtype=self.dtype)(level0)
        logits = logits[:, : x.shape[1], : x.shape[2]]
        return {"logits": logits, "level0": level0, "level1": level1, "level2": encoded}


class InitialBlock(nn.Module):
    """3×3 convolution of stride 2 beside maxima of 2×2 windows, BatchNorm, PReLU."""

    features: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns a map of half the resolution."""
        y = _conv(self.features - x.shape[-1], (3, 3), self.dtype, stride=2)(x)
        y = jnp.concatenate([y, _halved(x).astype(y.dtype)], axis=-1)
        return nn.PReLU()(batch_norm(self)(y))


class Bottleneck(nn.Module):
    """Residual block whose convolution has a quarter of the channels.

    Attributes:
      features: channels of the result.
      kind: ``"regular"``, ``"asymmetric"`` (5×1 and 1×5), ``"down"``, ``"up"``, or the dilation of the convolution.
      size: height and width of the result of ``"up"``.
      train: whether BatchNorm uses the batch's statistics.
      dtype: dtype of the computation.
    """

    features: int
    kind: str | int = "regular"
    size: tuple[int, ...] = ()
    train: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w features"]:
        """Returns the block's output, after its PReLU."""
        inner = max(min(x.shape[-1], self.features) // 4, 1)
        down, up = self.kind == "down", self.kind == "up"
        shortcut = _halved(x) if down else x
        if down and self.features > x.shape[-1]:
            shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (0, self.features - x.shape[-1])))
        elif x.shape[-1] != self.features:
            shortcut = batch_norm(self)(_conv(self.features, (1, 1), self.dtype)(shortcut))
        if up:
            shortcut = repeated(shortcut, *self.size)
        y = _conv(inner, (3, 3) if down else (1, 1), self.dtype, stride=2 if down else 1)(x)
        y = nn.PReLU()(batch_norm(self)(y))
        if up:
            y = nn.ConvTranspose(inner, (3, 3), (2, 2), use_bias=False, dtype=self.dtype, kernel_init=kaiming_normal)(y)
            y = y[:, : self.size[0], : self.size[1]]
        elif self.kind == "asymmetric":
            y = _conv(inner, (1, 5), self.dtype)(_conv(inner, (5, 1), self.dtype)(y))
        else:
            y = _conv(inner, (3, 3), self.dtype, dilation=self.kind if isinstance(self.kind, int) else 1)(y)
        y = nn.PReLU()(batch_norm(self)(y))
        y = batch_norm(self)(_conv(self.features, (1, 1), self.dtype)(y))
        return nn.PReLU()(y + shortcut.astype(y.dtype))


def _conv(features: int, size: tuple[int, int], dtype: Any, *, stride: int = 1, dilation: int = 1) -> nn.Conv:
    """Builds a convolution without bias, padded equally on all sides."""
    return nn.Conv(
        features,
        size,
        strides=stride,
        padding=[(dilation * (side // 2),) * 2 for side in size],
        kernel_dilation=dilation,
        use_bias=False,
        dtype=dtype,
        kernel_init=kaiming_normal,
    )


def _halved(x: Array) -> Array:
    """Returns the maxima of 2×2 windows, of which the last may be smaller."""
    odd = [side % 2 for side in x.shape[1:3]]
    return nn.max_pool(x, (2, 2), (2, 2), padding=[(0, extra) for extra in odd])
