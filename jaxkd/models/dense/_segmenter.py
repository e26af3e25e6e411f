"""A segmenter on a pyramid of feature maps: an encoder and a decoder.

Kirillov et al., "Panoptic Feature Pyramid Networks", CVPR 2019, section 3: the levels of the pyramid are brought to the
finest one's resolution and added, and a 1×1 convolution makes the classes, which are upsampled bilinearly to the
image. Here one or more 3×3 convolutions follow the sum, in place of convolutions at each level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax

from jaxkd.models._layers import batch_norm, conv
from jaxkd.models.dense._backbone import PyramidBackbone, level_strides

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Segmenter(nn.Module):
    """Encoder and decoder of the classes of pixels, at the size of the image.

    Also known as: semantic FPN.

    Attributes:
      num_classes: number of classes, of which there are as many logits.
      widths: channels of each stage of the backbone.
      channels: channels of the pyramid and of the decoder.
      blocks: number of basic blocks of a stage.
      stride: pixels between neighboring positions of the finest level, a power of two.
      layers: number of 3×3 convolutions of the decoder.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; parameters and running statistics stay float32.

    >>> import jax.numpy as jnp
    >>> model = Segmenter(num_classes=5, widths=(8, 16), channels=8)
    >>> image = jnp.zeros((1, 30, 40, 3))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
    >>> {name: x.shape[1:] for name, x in jax.eval_shape(model.apply, variables, image).items()}
    {'level0': (8, 10, 8), 'level1': (4, 5, 8), 'logits': (30, 40, 5), 'scores': (8, 10, 5)}
    """

    num_classes: int
    widths: Sequence[int] = (16, 32, 64, 128)
    channels: int = 64
    blocks: int = 1
    stride: int = 4
    layers: int = 1
    dtype: Any = None

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighboring positions of each level, finest first."""
        return level_strides(self.stride, len(self.widths))

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], train: bool = False) -> dict[str, Array]:
        """Returns ``logits``, ``scores`` and the levels of normalized images.

        Images are ``[batch, height, width, channels]``, of any size. The logits are ``[batch, height, width,
        classes]``, the scores the same before the upsampling, at the finest level's size, and the levels ``level0``,
        ``level1``, … those of `PyramidBackbone`. With ``train``, BatchNorm uses the batch's statistics and updates the
        running ones.

        Raises:
          TypeError: the image is not floating point.
          ValueError: the image does not have four axes, or a field has a value that it cannot have.
        """
        check_classes(self.num_classes)
        levels = PyramidBackbone(self.widths, self.channels, self.blocks, self.stride, self.dtype)(x, train)
        finest, *others = levels.values()
        height, width = finest.shape[1:3]
        merged = finest
        for level in others:
            merged = merged + upsampled(level, height, width)
        head = SegmenterHead(self.num_classes, self.channels, self.layers, train=train, dtype=self.dtype)
        scores = head(merged)
        return {"logits": upsampled(scores, x.shape[1], x.shape[2]), "scores": scores, **levels}


class SegmenterHead(nn.Module):
    """3×3 convolutions with BatchNorm and ReLU, and the classes of each position."""

    num_classes: int
    features: int
    layers: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width classes"]:
        """Returns the classes' scores at each position of a map."""
        for _ in range(self.layers):
            x = nn.relu(batch_norm(self)(conv(self.features, 3, 1, self.dtype)(x)))
        return nn.Conv(self.num_classes, (1, 1), dtype=self.dtype)(x)


def check_classes(classes: int) -> None:
    """Raises unless there are two classes or more."""
    if classes < 2:
        raise ValueError(f"num_classes: expected at least 2, got {classes}. The background is a class of its own.")


def upsampled(x: Float[Array, "batch h w channels"], height: int, width: int) -> Float[Array, "batch height width c"]:
    """Returns a map at another size, bilinearly between the centers of pixels.

    >>> import jax.numpy as jnp
    >>> upsampled(jnp.array([0.0, 4.0]).reshape(1, 1, 2, 1), 1, 4).ravel()
    Array([0., 1., 3., 4.], dtype=float32)
    """
    return jax.image.resize(x, (x.shape[0], height, width, x.shape[-1]), "linear")
