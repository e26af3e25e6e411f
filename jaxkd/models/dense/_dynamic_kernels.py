"""Poses in videos: kernels that depend on the frame before.

Nie et al., "Dynamic Kernel Distillation for Efficient Pose Estimation in Videos", ICCV 2019. A pose network reads the
first frame of a clip; every other frame has a light encoder, whose map is searched with kernels that the frame before
knows. The structure is

    h_0 = initializer(I_0),    f_t = BN(V · encoder(I_t)),
    k_t = D(BN(W · [h_{t−1}; f_{t−1}])),    h_t = BN(U · (k_t ⊛ f_t)),

with 1×1 convolutions U, V and W, the depthwise convolution ⊛ with kernels of each clip's own, and the distillator D of
the kernels: three times a 3×3 convolution, BatchNorm, ReLU and a 2×2 maximum, and a 3×3 convolution and BatchNorm.
Where the map after the third maximum has not the kernels' size, it is resized to it, linearly.

The loop over frames is unrolled: on a CPU, XLA runs gradients of convolutions in a loop of its own many times slower.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxkd.models._layers import batch_norm, conv
from jaxkd.models.dense._backbone import PyramidStem, repeated
from jaxkd.models.dense._pose import PoseNetwork, check_joints, to_joints
from jaxkd.models.vision._resnet import ResNetStage

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class DynamicKernels(nn.Module):
    """Heatmaps of the frames of clips, by kernels from the frame before.

    Also known as: DKD (dynamic kernel distillation) of poses.

    Attributes:
      joints: number of joints.
      widths: channels of each stage of the encoder of frames.
      channels: C, channels of the map that the kernels search.
      blocks: number of basic blocks of a stage of the encoder.
      kernel_size: side of the kernels, an odd number.
      initializer_widths: channels of each stage of the pose network that reads the first frame.
      initializer_channels: channels of that network's pyramid.
      stride: pixels between neighboring positions of the heatmaps, a power of two.
      dtype: dtype of the computation, such as ``jnp.bfloat16``; parameters and running statistics stay float32.

    >>> model = DynamicKernels(joints=15, widths=(4, 8), channels=6, initializer_widths=(4, 8), initializer_channels=4)
    >>> clips = jnp.zeros((2, 5, 56, 60, 3))
    >>> variables = jax.eval_shape(model.init, jax.random.key(0), clips)
    >>> {name: x.shape for name, x in jax.eval_shape(model.apply, variables, clips).items()}
    {'features': (2, 5, 14, 15, 6), 'heatmaps': (2, 5, 14, 15, 15), 'kernels': (2, 4, 7, 7, 6)}
    """

    joints: int
    widths: Sequence[int] = (8, 16, 32)
    channels: int = 256
    blocks: int = 1
    kernel_size: int = 7
    initializer_widths: Sequence[int] = (16, 32, 64, 128)
    initializer_channels: int = 64
    stride: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch frames height width channels"], train: bool = False) -> dict[str, Array]:
        """Returns the heatmaps, features and kernels of normalized clips.

        The clips are ``[batch, frames, h, w, channels]``. The ``heatmaps`` are ``[batch, frames, ceil(h / stride),
        ceil(w / stride), joints]``, float32; the ``features`` f_t have as many positions, and the ``kernels`` are those
        of all frames but the first. With ``train``, BatchNorm uses the statistics of all clips, and of the layers after
        the features those of one frame after the other.

        Raises:
          TypeError: the clips are not floating point.
          ValueError: the clips do not have five axes, or a field has a value that it cannot have.
        """
        check_joints(self.joints)
        if x.ndim != 5 or x.shape[1] < 1:
            raise ValueError(
                f"x: expected clips [batch, frames, height, width, channels], got {x.dtype}{list(x.shape)}."
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"x: expected floating point, got {x.dtype}{list(x.shape)}. Normalize clips first.")
        if self.kernel_size % 2 == 0 or self.kernel_size < 1:
            raise ValueError(f"kernel_size: expected an odd number, got {self.kernel_size}.")
        options: dict[str, Any] = {"train": train, "dtype": self.dtype}
        initializer = PoseNetwork(
            self.joints,
            self.initializer_widths,
            self.initializer_channels,
            stride=self.stride,
            dtype=self.dtype,
            name="initializer",
        )
        encoder = FrameEncoder(self.widths, self.channels, self.blocks, self.stride, **options, name="encoder")
        distillator = KernelDistillator(self.channels, self.kernel_size, **options, name="distillator")
        head = SearchHead(self.joints, **options, name="head")
        features = encoder(x)
        heatmaps, kernels = [initializer(x[:, 0], train)["heatmaps"]], []
        for frame in range(1, x.shape[1]):
            kernels.append(distillator(heatmaps[-1], features[:, frame - 1]))
            heatmaps.append(head(convolved(features[:, frame], kernels[-1])))
        shape = (x.shape[0], 0, self.kernel_size, self.kernel_size, self.channels)
        return {
            "heatmaps": jnp.stack(heatmaps, axis=1),
            "features": features,
            "kernels": jnp.stack(kernels, axis=1) if kernels else jnp.zeros(shape, features.dtype),
        }


class FrameEncoder(nn.Module):
    """A light network of each frame.

    Its stages are summed from coarse to fine behind 1×1 convolutions, and normalized.
    """

    widths: Sequence[int]
    channels: int
    blocks: int
    stride: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch height width channels"]) -> Float[Array, "*batch h w channels"]:
        """Returns the features of images or of the frames of clips."""
        options: dict[str, Any] = {"train": self.train, "dtype": self.dtype}
        x = PyramidStem(self.widths[0], self.stride.bit_length() - 1, **options)(x)
        maps = []
        for number, width in enumerate(self.widths):
            x = ResNetStage(self.blocks, width, stride=1 if number == 0 else 2, **options)(x)
            maps.append(x)
        # V is linear, so that its sum over the stages is the one over their maps side by side.
        x = conv(self.channels, 1, 1, self.dtype)(maps[-1])
        for level in maps[-2::-1]:
            x = conv(self.channels, 1, 1, self.dtype)(level) + repeated(x, *level.shape[-3:-1])
        return batch_norm(self)(x)


class KernelDistillator(nn.Module):
    """The kernels that a frame leaves to the next one."""

    channels: int
    size: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(
        self, heatmaps: Float[Array, "batch h w joints"], features: Float[Array, "batch h w channels"]
    ) -> Float[Array, "batch size size channels"]:
        """Returns a kernel for each example and channel."""
        known = jnp.concatenate([heatmaps.astype(features.dtype), features], axis=-1)
        x = batch_norm(self)(conv(self.channels, 1, 1, self.dtype)(known))
        for _ in range(3):
            x = nn.relu(batch_norm(self)(conv(self.channels, 3, 1, self.dtype)(x)))
            x = nn.max_pool(x, (2, 2), (2, 2), "SAME")
        if x.shape[1:3] != (self.size, self.size):
            x = jax.image.resize(x, (x.shape[0], self.size, self.size, x.shape[-1]), "linear")
        return batch_norm(self)(conv(self.channels, 3, 1, self.dtype)(x))


class SearchHead(nn.Module):
    """1×1 convolution to joints and BatchNorm."""

    joints: int
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch h w channels"]) -> Float[Array, "batch h w joints"]:
        """Returns heatmaps, float32.

        Their BatchNorm begins with a small scale, because nearly every position of a true one is zero.
        """
        x = to_joints(self.joints, self.dtype)(x)
        scale = nn.initializers.constant(0.1)
        norm = nn.BatchNorm(not self.train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, scale_init=scale)
        return norm(x).astype(jnp.float32)


def convolved(
    features: Float[Array, "batch h w channels"], kernels: Float[Array, "batch size size channels"]
) -> Float[Array, "batch h w channels"]:
    """Returns the depthwise convolution of each example with its own kernels.

    A sum of shifted maps, accumulated in float32: XLA's convolution with a group for each example and channel is slow
    on every platform.

    >>> kernels = jnp.zeros((1, 3, 3, 1)).at[0, 1, 2].set(2.0)  # twice the right neighbor
    >>> convolved(jnp.array([[1.0, 3.0]])[None, :, :, None], kernels)[0, :, :, 0]
    Array([[6., 0.]], dtype=float32)
    """
    height, width = features.shape[1:3]
    size = kernels.shape[1]
    wide = jnp.promote_types(features.dtype, jnp.float32)
    padded = jnp.pad(features, ((0, 0), (size // 2, size // 2), (size // 2, size // 2), (0, 0))).astype(wide)
    total = jnp.zeros(features.shape, wide)
    for row in range(size):
        for column in range(size):
            shifted = padded[:, row : row + height, column : column + width]
            total += shifted * kernels[:, None, None, row, column].astype(wide)
    return total.astype(features.dtype)
