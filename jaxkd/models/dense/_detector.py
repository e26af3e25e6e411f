"""A one-stage detector on a pyramid of feature maps.

Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, section 4 (RetinaNet): one head, shared by all levels,
has a branch of 3×3 convolutions for the classes of each anchor and another one for the offsets of its box. Its last
layers begin with weights of standard deviation 0.01, and the bias of the classes such that an anchor holds an object
with the probability π (section 4.1), so that the many anchors of the background do not dominate the first steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from jaxkd.models._layers import kaiming_normal
from jaxkd.models.dense._backbone import PyramidBackbone, level_strides

if TYPE_CHECKING:
    from jaxtyping import Array, Float

FORMS = ("softmax", "sigmoid")


class Detector(nn.Module):
    """One-stage detector: classes and box offsets of every anchor.

    Also known as: RetinaNet, with the form ``"sigmoid"``; SSD head, with the form ``"softmax"``.

    The A anchors are those of all levels, finest first; within a level row by row, and within a position in the order
    of `jaxkd.dense.anchors`.

    Attributes:
      num_classes: number of classes of objects, without the background.
      num_anchors: number of anchors at a position, of every level.
      form: ``"softmax"`` for logits of ``1 + num_classes`` classes, of which class 0 is the background; ``"sigmoid"``
        for ``num_classes`` logits without one, as the focal loss takes them.
      widths: channels of each stage of the backbone.
      channels: channels of the pyramid and of the head.
      blocks: number of basic blocks of a stage.
      stride: pixels between neighboring positions of the finest level, a power of two.
      layers: number of hidden convolutions of each branch of the head.
      prior: π, the probability of an object at an anchor before training.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; parameters and running statistics stay float32.

    >>> import jax
    >>> model = Detector(num_classes=3, num_anchors=2, widths=(8, 16), channels=8)
    >>> image = jnp.zeros((1, 32, 40, 3))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), image)
    >>> {name: x.shape[1:] for name, x in jax.eval_shape(model.apply, variables, image).items()}
    {'level0': (8, 10, 8), 'level1': (4, 5, 8), 'logits': (200, 4), 'offsets': (200, 4)}
    """

    num_classes: int
    num_anchors: int
    form: str = "softmax"
    widths: Sequence[int] = (16, 32, 64, 128)
    channels: int = 64
    blocks: int = 1
    stride: int = 4
    layers: int = 1
    prior: float = 0.01
    dtype: Any = None

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between neighboring positions of each level, finest first."""
        return level_strides(self.stride, len(self.widths))

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], train: bool = False) -> dict[str, Array]:
        """Returns the outputs of normalized images ``[batch, height, width, channels]``.

        ``logits`` are ``[batch, A, classes]``, ``offsets`` ``[batch, A, 4]``, and ``level0``, ``level1``, … those of
        `PyramidBackbone`. With ``train``, BatchNorm uses the batch's statistics and updates the running ones.

        Raises:
          TypeError: the image is not floating point.
          ValueError: the image does not have four axes, or a field has a value that it cannot have.
        """
        if self.form not in FORMS:
            raise ValueError(f"form: expected one of {FORMS}, got {self.form!r}.")
        for name in ("num_classes", "num_anchors"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}.")
        if not 0 < self.prior < 1:
            raise ValueError(f"prior: expected a probability between 0 and 1, got {self.prior}.")
        levels = PyramidBackbone(self.widths, self.channels, self.blocks, self.stride, self.dtype)(x, train)
        odds = math.log((1 - self.prior) / self.prior)
        # Of a softmax, the background's logit is larger than the logarithm of the sum of the others by the same odds.
        bias = [-odds] * self.num_classes
        if self.form == "softmax":
            bias = [odds + math.log(self.num_classes)] + [0.0] * self.num_classes
        options = {"layers": self.layers, "anchors": self.num_anchors, "dtype": self.dtype}
        classes = DetectorBranch(tuple(bias), name="classes", **options)
        boxes = DetectorBranch((0.0,) * 4, name="boxes", **options)
        return {
            "logits": jnp.concatenate([classes(level) for level in levels.values()], axis=1),
            "offsets": jnp.concatenate([boxes(level) for level in levels.values()], axis=1),
            **levels,
        }


class DetectorBranch(nn.Module):
    """Convolutions that every level shares, from a map to values of each anchor."""

    bias: tuple[float, ...]
    layers: int
    anchors: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch n values"]:
        """Returns the values of each anchor of a map, which begin as the bias."""
        options = {"padding": 1, "dtype": self.dtype}
        for _ in range(self.layers):
            x = nn.relu(nn.Conv(x.shape[-1], (3, 3), kernel_init=kaiming_normal, **options)(x))
        values = len(self.bias)
        last = nn.Conv(
            self.anchors * values,
            (3, 3),
            kernel_init=nn.initializers.normal(0.01),
            bias_init=lambda _, shape, dtype=jnp.float32: jnp.tile(jnp.array(self.bias, dtype), self.anchors),
            **options,
        )
        return last(x).reshape(x.shape[0], -1, values)
