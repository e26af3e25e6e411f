"""Resizing of one example's image and mask, on the host."""

from __future__ import annotations

import functools

import numpy as np


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns an image ``[height, width, channels]`` in another size.

    The interpolation is linear, and its filter is wide enough where the image gets smaller. Integers are rounded.

    >>> resize_image(np.array([[[0], [4], [8], [12]]], np.uint8), (1, 2))[0, :, 0].tolist()
    [3, 9]
    """
    rows, columns = (_weights(old, new) for old, new in zip(image.shape[:2], size, strict=True))
    found = np.einsum("hi,iwc->hwc", rows, image.astype(np.float32))
    found = np.einsum("wi,hic->hwc", columns, found)
    if image.dtype.kind in "ui":
        limits = np.iinfo(image.dtype)
        found = np.clip(np.round(found), limits.min, limits.max)
    return found.astype(image.dtype)


def resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the nearest values of an array ``[height, width]`` in another size.

    >>> resize_mask(np.array([[1, 2, 3, 4]]), (2, 2)).tolist()
    [[2, 4], [2, 4]]
    """
    rows, columns = (((2 * np.arange(new) + 1) * old) // (2 * new) for old, new in zip(mask.shape, size, strict=True))
    return mask[rows[:, None], columns]


@functools.lru_cache(maxsize=256)
def _weights(old: int, new: int) -> np.ndarray:
    """Returns the weights of a triangular filter ``[new, old]``, each row of sum 1."""
    width = max(old / new, 1.0)  # a wider filter includes every pixel where the side gets shorter
    centers = (np.arange(new) + 0.5) * old / new
    distance = np.abs(centers[:, None] - (np.arange(old) + 0.5)) / width
    weights = np.maximum(1 - distance, 0)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
