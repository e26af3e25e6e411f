"""Functions from PyTorch's layout of a weight to Flax's.

==================  ======================================  ============================================
function            PyTorch                                 Flax
==================  ======================================  ============================================
`linear`            ``[out, in]``                           ``[in, out]``
`conv`              ``[out, in / groups, *window]``         ``[*window, in / groups, out]``
`conv_transpose`    ``[in, out, *window]``                  ``[*window, in, out]``, window reversed
`after_flatten`     ``[out, channels · height · width]``    ``[height · width · channels, out]``
`into_heads`        ``[heads · features, in]``              ``[in, heads, features]``
`out_of_heads`      ``[out, heads · features]``             ``[heads, features, out]``
`half_split`        ``[heads · features, in]``              ``[in, heads · features]``, pairs as halves
`part`              ``[in, count · out]``                   ``[in, out]``, one of the parts
`as_is`             anything                                unmodified
==================  ======================================  ============================================

`usual` chooses among `linear`, `conv`, `conv_transpose` and `as_is` by the name of the array in the Flax model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxkd._core import checks

Layout = Callable[[Any], Any]


def as_is(weight: Any) -> np.ndarray:
    """Returns the array unmodified: biases, scales, embeddings, untransposed weights."""
    return np.asarray(weight)


def linear(weight: Any) -> np.ndarray:
    """Converts the ``[out, in]`` weight of ``torch.nn.Linear`` to ``Dense``'s.

    Raises:
      ValueError: the weight does not have two axes.

    >>> linear(np.zeros((10, 64))).shape
    (64, 10)
    """
    return _ranked(weight, (2,), "[out, in]").T


def conv(weight: Any) -> np.ndarray:
    """Converts the weight of ``torch.nn.Conv{1,2,3}d`` to ``Conv``.

    It maps ``[out, in / groups, *window]``, grouped and depthwise convolutions included, to
    ``[*window, in / groups, out]``. PyTorch's transposed convolutions are converted by the same function to
    ``ConvTranspose(transpose_kernel=True)``, which computes the same.

    Raises:
      ValueError: the weight does not have three, four or five axes.

    >>> conv(np.zeros((16, 3, 5, 7))).shape
    (5, 7, 3, 16)
    """
    return np.moveaxis(_ranked(weight, (3, 4, 5), "[out, in / groups, *window]"), (1, 0), (-2, -1))


def conv_transpose(weight: Any) -> np.ndarray:
    """Converts the weight of ``torch.nn.ConvTranspose{1,2,3}d`` to ``ConvTranspose``.

    It maps ``[in, out, *window]`` to ``[*window, in, out]``; Flax has no grouped transposed convolution. Flax's window
    is not reversed, so it is flipped here. PyTorch's padding p is Flax's
    ``padding=[(d (k - 1) - p, d (k - 1) - p + o), ...]``, for a window of k, a dilation of d and an output padding of
    o.

    Raises:
      ValueError: the weight does not have three, four or five axes.

    >>> conv_transpose(np.arange(3.0).reshape(1, 1, 3)).ravel()
    array([2., 1., 0.])
    """
    weight = _ranked(weight, (3, 4, 5), "[in, out, *window]")
    window = tuple(range(2, weight.ndim))
    return np.moveaxis(np.flip(weight, window), (0, 1), (-2, -1))


def after_flatten(channels: int, *window: int) -> Layout:
    """Returns the layout of a linear layer whose input is a flattened feature map.

    PyTorch flattens channels first, Flax channels last. The number of inputs is the same, so the shape does not show
    the difference: `linear` would fit, and every logit would be wrong.

    Args:
      channels: number of channels of the flattened map.
      *window: its height and width (or length; or depth, height, width).

    Returns:
      A function of ``[out, channels · height · width]``, which returns ``[height · width · channels, out]``.

    >>> weight = np.array([[1, 2, 3, 4]])  # of two channels of a 1 × 2 map: 1, 2 and 3, 4
    >>> after_flatten(2, 1, 2)(weight).ravel()
    array([1, 3, 2, 4])
    """
    size = math.prod((channels, *window))

    def layout(weight: Any) -> np.ndarray:
        weight = _ranked(weight, (2,), f"[out, {size}]")
        if weight.shape[1] != size:
            raise ValueError(f"expected [out, {size}] for a map of {channels} × {window}, got {list(weight.shape)}")
        weight = weight.reshape(-1, channels, *window)
        return np.moveaxis(weight, (1, 0), (-2, -1)).reshape(size, -1)

    return layout


def into_heads(heads: int) -> Layout:
    """Returns the layout of a projection into attention heads, for ``DenseGeneral``.

    It maps ``[heads · features, in]`` to ``[in, heads, features]`` and ``[heads · features]`` to ``[heads, features]``.

    >>> into_heads(4)(np.zeros((32, 16))).shape, into_heads(4)(np.zeros(32)).shape
    ((16, 4, 8), (4, 8))
    """

    def layout(weight: Any) -> np.ndarray:
        weight = _divisible(_ranked(weight, (1, 2), "[heads · features, in] or [heads · features]"), 0, heads, "heads")
        split = weight.reshape(heads, -1, *weight.shape[1:])
        return np.moveaxis(split, -1, 0) if weight.ndim == 2 else split

    return layout


def out_of_heads(heads: int) -> Layout:
    """Returns the layout of a projection out of attention heads, for ``DenseGeneral``.

    It maps ``[out, heads · features]`` to ``[heads, features, out]``.

    >>> out_of_heads(4)(np.zeros((16, 32))).shape
    (4, 8, 16)
    """

    def layout(weight: Any) -> np.ndarray:
        weight = _divisible(_ranked(weight, (2,), "[out, heads · features]"), 1, heads, "heads")
        return weight.T.reshape(heads, -1, weight.shape[0])

    return layout


def part(number: int, count: int) -> Layout:
    """Returns the layout of one of several equal parts of a fused array.

    The array is not transposed: its last axis is the output, as in GPT-2's ``c_attn``, which holds the kernels of
    query, key and value side by side.

    Args:
      number: which part, from 0.
      count: the number of parts.

    Returns:
      A function of ``[..., count · out]``, which returns ``[..., out]``.

    >>> fused = np.array([[1, 2, 3, 4, 5, 6]])
    >>> part(1, 3)(fused)
    array([[3, 4]])
    """

    def layout(weight: Any) -> np.ndarray:
        weight = _divisible(_ranked(weight, (1, 2), f"[in, {count} · out] or [{count} · out]"), -1, count, "parts")
        return np.split(weight, count, -1)[number]

    return layout


def half_split(heads: int) -> Layout:
    """Returns the layout of a query or key projection with interleaved rotary pairs.

    A rotary embedding rotates pairs of a head's features. Meta's files of Llama pair neighbors, ``2 i`` with
    ``2 i + 1``; those of Hugging Face pair halves, ``i`` with ``i + features / 2``, as ``jaxkd.models.Decoder`` does
    by default. The shape is the same in both conventions, so it does not show the difference.

    It maps ``[heads · features, in]`` to ``[in, heads · features]`` and reorders the features of each head, also of a
    bias ``[heads · features]``.

    Args:
      heads: number of heads; for a key projection, of key-value heads.

    >>> half_split(1)(np.arange(6)), half_split(2)(np.zeros((8, 5))).shape
    (array([0, 2, 4, 1, 3, 5]), (5, 8))
    """

    def layout(weight: Any) -> np.ndarray:
        weight = _ranked(weight, (1, 2), "[heads · features, in] or [heads · features]")
        pairs = _divisible(weight, 0, 2 * heads, "heads of pairs").reshape(heads, -1, 2, *weight.shape[1:])
        return np.moveaxis(pairs, 2, 1).reshape(weight.shape).T

    return layout


def usual(name: str, weight: Any) -> Any:
    """Converts an array by the name that it has in a Flax model.

    A ``kernel`` with two axes belongs to a linear layer; one with more axes to a convolution, which is transposed if
    its module is named ``ConvTranspose…``. Any other array is returned unmodified.

    >>> usual("params/Dense_0/kernel", np.zeros((10, 64))).shape
    (64, 10)
    """
    *_, module, leaf = ("", *name.split("/"))
    if leaf != "kernel" or weight.ndim < 2:
        return weight
    if weight.ndim == 2:
        return linear(weight)
    return conv_transpose(weight) if module.startswith("ConvTranspose") else conv(weight)


def _ranked(weight: Any, ranks: tuple[int, ...], expected: str) -> np.ndarray:
    if weight.ndim not in ranks:
        raise ValueError(f"expected {expected}, got {checks.shape(weight)}")
    return np.asarray(weight)


def _divisible(weight: np.ndarray, axis: int, count: int, what: str) -> np.ndarray:
    if weight.shape[axis] % count:
        raise ValueError(f"expected axis {axis} to divide into {count} {what}, got {checks.shape(weight)}")
    return weight
