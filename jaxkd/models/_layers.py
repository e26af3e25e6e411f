"""Layers of several networks: convolutions, BatchNorm, PyTorch's initializations.

The functions return Flax's own modules, so that submodules have Flax's usual paths, such as ``Conv_0``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float

kaiming_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
"""PyTorch's ``kaiming_normal_(mode="fan_out")``."""

uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""PyTorch's default: uniform in ``±1/sqrt(fan_in) = ±sqrt(3 · (1/3) / fan_in)``."""


def uniform(key: Any, shape: Sequence[int], dtype: Any = jnp.float32, *, bound: float) -> Array:
    """Draws uniform values in ``±bound``."""
    return jax.random.uniform(key, tuple(shape), dtype, minval=-bound, maxval=bound)


def check_images(x: Any) -> None:
    """Raises unless an input is a batch of normalized images."""
    if x.ndim != 4:
        raise ValueError(f"x: expected [batch, height, width, channels], got {x.dtype}{list(x.shape)}.")
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x: expected floating point, got {x.dtype}{list(x.shape)}. Normalize images first.")


def conv(
    features: int,
    size: int,
    stride: int,
    dtype: Any,
    *,
    groups: int = 1,
    kernel_init: Callable[..., Any] = kaiming_normal,
) -> nn.Conv:
    """Builds a square convolution without bias, padded equally on all sides.

    This is PyTorch's padding. With a stride of 2, ``"SAME"`` would pad only below and to the right, which shifts the
    map by half a pixel.

    Args:
      features: output channels.
      size: height and width of the kernel.
      stride: stride in both directions.
      dtype: dtype of the computation; None for that of the inputs.
      groups: number of groups of channels that are convolved separately.
      kernel_init: initializer of the kernel.
    """
    return nn.Conv(
        features,
        (size, size),
        strides=stride,
        padding=size // 2,
        feature_group_count=groups,
        use_bias=False,
        dtype=dtype,
        kernel_init=kernel_init,
        conv_general_dilated=grouped_convolution if groups > 1 else None,
    )


uniform_conv = partial(conv, kernel_init=uniform_fan_in)
"""`conv` with PyTorch's default initialization."""


def batch_norm(module: Any) -> nn.BatchNorm:
    """Builds a BatchNorm with PyTorch's defaults, from a module's fields."""
    return nn.BatchNorm(use_running_average=not module.train, momentum=0.9, epsilon=1e-5, dtype=module.dtype)


def classifier(classes: int, features: int, dtype: Any) -> nn.Dense:
    """Builds a linear layer with PyTorch's default initialization.

    The bias has the distribution of the weight.
    """
    bias_init = partial(uniform, bound=features**-0.5)
    return nn.Dense(classes, dtype=dtype, kernel_init=uniform_fan_in, bias_init=bias_init)


class Residual(nn.Module):
    """Sum of two maps, as a module, so that a pre-activation can be tapped."""

    @nn.compact
    def __call__(self, branch: Float[Array, "*shape"], shortcut: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Returns ``branch + shortcut``."""
        return branch + shortcut


class GlobalAveragePool(nn.Module):
    """Mean over a map's positions, as a module, so that the embedding can be tapped."""

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch channels"]:
        """Returns the means ``[batch, channels]``."""
        return x.mean(axis=(1, 2))


def grouped_convolution(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "size size_ channels_in_group features"],
    window_strides: Sequence[int],
    padding: Any,
    *,
    feature_group_count: int,
    **others: Any,
) -> Float[Array, "batch h w features"]:
    """Computes a grouped convolution, on a CPU by matrix products or shifted sums.

    On a CPU, XLA's gradients of grouped convolutions are about ten times slower than those of a product per group (1×1)
    or of a sum of shifted maps (depthwise). On other platforms, and for other shapes, this is XLA's convolution.

    The arguments are those of `jax.lax.conv_general_dilated`, with the kernel in Flax's layout, ``[size, size, channels
    per group, features]``. The result has the dtype of x.

    >>> x, kernel = jnp.ones((1, 4, 4, 6)), jnp.ones((3, 3, 1, 6))
    >>> grouped_convolution(x, kernel, (2, 2), ((1, 1), (1, 1)), feature_group_count=6)[0, :, :, 0]
    Array([[4., 6.],
           [6., 9.]], dtype=float32)
    """
    on_cpu = None
    if jax.default_backend() == "cpu" and others.get("preferred_element_type") is None:
        if kernel.shape[:2] == (1, 1) and tuple(window_strides) == (1, 1):
            on_cpu = _pointwise
        elif kernel.shape[2] == 1 and kernel.shape[3] == feature_group_count:
            on_cpu = _depthwise
    if on_cpu is None:
        others.setdefault("dimension_numbers", ("NHWC", "HWIO", "NHWC"))
        return jax.lax.conv_general_dilated(
            x, kernel, window_strides, padding, feature_group_count=feature_group_count, **others
        )
    # Like XLA's convolution, accumulate in float32 or better for inputs of any dtype.
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return on_cpu(x, kernel, window_strides, padding, feature_group_count, wide).astype(x.dtype)


def _pointwise(x: Array, kernel: Array, strides: Any, padding: Any, groups: int, wide: Any) -> Array:
    parts = x.reshape(*x.shape[:-1], groups, -1)
    kernels = kernel.reshape(kernel.shape[2], groups, -1)
    products = jnp.einsum("bhwgi,igo->bhwgo", parts, kernels, preferred_element_type=wide)
    return products.reshape(*x.shape[:-1], -1)


def _depthwise(x: Array, kernel: Array, strides: Any, padding: Any, groups: int, wide: Any) -> Array:
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    sizes = [
        (length - window) // stride + 1
        for length, window, stride in zip(padded.shape[1:3], kernel.shape[:2], strides, strict=True)
    ]
    total = jnp.zeros((x.shape[0], *sizes, groups), wide)
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            ends = row + (sizes[0] - 1) * strides[0] + 1, column + (sizes[1] - 1) * strides[1] + 1
            shifted = padded[:, row : ends[0] : strides[0], column : ends[1] : strides[1]]
            total += shifted.astype(wide) * kernel[row, column, 0].astype(wide)[None, None, None, :]
    return total
