"""Discriminators of adversarial objectives, for vectors and for maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.objectives.layers import conv_init, dense, dense_init, flatten
from jaxkd.types import Array

__all__ = ["Discriminator", "cnn", "mlp"]


class Discriminator(NamedTuple):
    """A discriminator or critic, as a pair of functions.

    Attributes:
      init: ``(key, shape, outputs) -> params``, for inputs of this shape, batch included.
      apply: ``(params, x) -> [batch, outputs]``.
    """

    init: Callable[..., Any]
    apply: Callable[..., Array]


def mlp(*widths: int) -> Discriminator:
    """Builds dense layers with leaky ReLUs (slope 0.2) on the flattened input.

    Args:
      *widths: sizes of the hidden layers.

    >>> network = mlp(8)
    >>> network.apply(network.init(jax.random.key(0), (2, 3), 1), jnp.ones((2, 3))).shape
    (2, 1)
    """

    def init(key: Array, shape: tuple[int, ...], outputs: int) -> Any:
        sizes = (math.prod(shape[1:]), *widths, outputs)
        keys = jax.random.split(key, len(sizes) - 1)
        return [dense_init(k, a, b) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]

    def apply(params: Any, x: Array) -> Array:
        x = flatten(x)
        for i, layer in enumerate(params):
            x = dense(layer, jax.nn.leaky_relu(x, 0.2) if i else x)
        return x

    return Discriminator(init, apply)


def cnn(*widths: int) -> Discriminator:
    """Builds strided convolutions with leaky ReLUs, a spatial mean and a dense layer.

    The convolutions are 4×4 of stride 2, the leaky ReLUs have the slope 0.2.

    Args:
      *widths: channels of the convolutions.

    >>> network = cnn(8, 16)
    >>> network.apply(network.init(jax.random.key(0), (2, 8, 8, 3), 1), jnp.ones((2, 8, 8, 3))).shape
    (2, 1)
    """

    def init(key: Array, shape: tuple[int, ...], outputs: int) -> Any:
        if len(shape) != 4:
            raise ValueError(f"cnn: expected maps [batch, height, width, channels], got {list(shape)}.")
        sizes = (shape[-1], *widths)
        *keys, last = jax.random.split(key, len(sizes))
        layers = [conv_init(k, 4, a, b) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]
        return [*layers, dense_init(last, sizes[-1], outputs)]

    def apply(params: Any, x: Array) -> Array:
        for layer in params[:-1]:
            kernel = layer["kernel"].astype(x.dtype)
            x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.leaky_relu(x + layer["bias"].reshape(1, 1, 1, -1), 0.2)
        return dense(params[-1], jnp.mean(x, axis=(1, 2)))

    return Discriminator(init, apply)
