"""Number of examples and mask of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkd._core.checks import describe, shape
from jaxkd.types import Array


def batch_size(batch: Mapping[str, Any]) -> int:
    """Returns the number of examples: the leading dimension that all arrays share.

    Raises:
      ValueError: the batch is empty, or its arrays disagree.

    >>> import jax
    >>> batch_size({"image": jax.numpy.zeros((8, 4)), "label": jax.numpy.zeros(8, int)})
    8
    """
    sizes = {name: x.shape[0] if getattr(x, "ndim", 0) else None for name, x in batch.items()}
    if len(set(sizes.values())) != 1 or None in sizes.values():
        raise ValueError(
            f"batch: expected a dict of arrays [batch, ...] with one leading dimension, got {describe(batch)}."
        )
    return next(iter(sizes.values()))  # type: ignore[return-value]


def example_mask(batch: Mapping[str, Any]) -> Array | None:
    """Returns the batch's checked ``mask``, or None if the batch has none.

    Raises:
      ValueError: the mask is not boolean ``[batch]``.
    """
    mask = batch.get("mask")
    if mask is not None and (mask.dtype != bool or mask.ndim != 1):
        raise ValueError(
            f"batch['mask']: expected bool[batch], True for the examples to include, got {shape(mask)}. For a mask "
            "over tokens use another name and term(..., where='batch/NAME')."
        )
    return mask
