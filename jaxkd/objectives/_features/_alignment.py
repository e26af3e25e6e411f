"""The student's map with the teacher's channels, of the same size."""

from __future__ import annotations

from typing import Any

from jaxkd._core.batches import lookup
from jaxkd.objectives._tokens import mask_feature, mask_tokens
from jaxkd.objectives.layers import conv, conv_init, dense, dense_init, maps, pool_to_match
from jaxkd.types import Array, Context


def align_init(
    name: str, key: Array, context: Context, student: str, teacher: str, *, kernel_size: int | None = None
) -> tuple[dict[str, Any], int]:
    """Initializes the alignment of two maps; also returns the teacher's channels.

    It is a 1×1 convolution where the channels differ, and nothing where they do not; with a kernel size, always a
    convolution of that size. Errors begin with ``name``.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> feature = lambda channels: {"f": jax.ShapeDtypeStruct((2, 8, 8, channels), jnp.float32)}
    >>> paths, key = ("student/f", "teacher/f"), jax.random.key(0)
    >>> params, channels = align_init("mgd", key, Context(feature(6), feature(4), {}, 0), *paths)
    >>> params["align"]["kernel"].shape, channels
    ((6, 4), 4)
    >>> align_init("mgd", key, Context(feature(4), feature(4), {}, 0), *paths)
    ({}, 4)
    """
    features = [lookup(context, path) for path in (student, teacher)]
    maps(name, features)
    channels, targets = (feature.shape[-1] for feature in features)
    if kernel_size is None and channels == targets:
        return {}, targets
    if kernel_size is None or kernel_size == 1:
        return {"align": dense_init(key, channels, targets)}, targets
    return {"align": conv_init(key, kernel_size, channels, targets)}, targets


def align(name: str, params: Any, context: Context, student: str, teacher: str) -> tuple[Array, Array]:
    """Returns both maps at the size of the smaller one, the student's aligned."""
    feature, target = pool_to_match(
        name, *(mask_feature(context, lookup(context, path)) for path in (student, teacher))
    )
    if "align" not in params:
        return feature, target
    layer = dense if params["align"]["kernel"].ndim == 2 else conv
    return mask_tokens(context, layer(params["align"], feature)), target
