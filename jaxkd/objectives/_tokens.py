"""Masks of features: over examples, or over the tokens or positions of a feature."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxkd._core import batches
from jaxkd._core.batches import lookup
from jaxkd.objectives._compose import replace
from jaxkd.types import Array, Context


def feature_mask(context: Context, shape: tuple[int, ...]) -> Array | None:
    """Returns the mask of a feature ``[batch, ..., features]``, or None without one.

    It is ``[batch, ...]``, without the features' axis, where the mask is over the feature's tokens; else ``[batch]``,
    the examples with any token.

    >>> context = Context({}, {}, {"mask": jnp.array([[True, False], [False, False]])}, 0)
    >>> [feature_mask(context, shape).tolist() for shape in ((2, 2, 5), (2, 2))]
    [[[True, False], [False, False]], [True, False]]
    """
    tokens = token_mask(context, shape)
    return batches.mask_of_shape(context, shape[:1]) if tokens is None else tokens


def token_mask(context: Context, shape: tuple[int, ...]) -> Array | None:
    """Returns the mask of a feature's tokens ``[batch, ...]``, or None without one.

    The positions of a map ``[batch, height, width, channels]`` are its tokens for a mask ``[batch, height, width]``
    alone: another mask's tokens could be as many as the map is high. A map of another resolution has the mask of its
    examples.

    Raises:
      ValueError: the feature is a sequence with another number of tokens than the mask.
    """
    mask = context.batch.get("mask")
    ndim = getattr(mask, "ndim", 1)
    if mask is not None and ndim > 1:
        batches.check_tokens("feature", mask, tuple(shape))
    if mask is None or ndim == 1 or tuple(mask.shape) != tuple(shape[:-1][:ndim]) or (len(shape) == 4 and ndim != 3):
        return None
    return batches.mask_of_shape(context, shape[:-1])


def mask_feature(context: Context, x: Array) -> Array:
    """Sets masked examples and tokens of a feature ``[batch, ..., features]`` to zero.

    Padding may hold NaN or infinity, which would otherwise reach gradients of parameters and batch statistics.
    """
    return _zero_outside(feature_mask(context, x.shape), x)


def mask_tokens(context: Context, x: Array) -> Array:
    """Sets masked tokens of a feature to zero; a mask over examples changes nothing.

    After a layer with a bias, masked positions of a map would enter the next convolution of their neighbors.
    """
    return _zero_outside(token_mask(context, x.shape), x)


def tokens_as_rows(context: Context, *paths: str) -> Context:
    """Turns features into rows ``[batch · tokens, features]``, if tokens are masked.

    A loss with one value per row then averages over the tokens that the mask includes, as losses over tokens do.
    """
    features = {path: lookup(context, path) for path in paths}
    if any(token_mask(context, x.shape) is None for x in features.values()):
        return context
    rows = {path: x.reshape(-1, *x.shape[context.batch["mask"].ndim :]) for path, x in features.items()}
    return replace(context, rows)


def summed_over_tokens(loss: Callable[..., Array]) -> Callable[..., Array]:
    """Lets a loss that is a sum over a feature take a mask over the feature's tokens."""

    @functools.wraps(loss)
    def summed(student: Array, teacher: Array, *args: Any, where: Array | None = None, **options: Any) -> Array:
        if where is None or where.ndim == 1:
            return loss(student, teacher, *args, where=where, **options)
        rows = (x.reshape(where.size, *x.shape[where.ndim :]) for x in (student, teacher))
        values = loss(*rows, *args, where=where.reshape(-1), **options).reshape(where.shape)
        return jnp.sum(values, axis=tuple(range(1, where.ndim)))

    return summed


def expand(mask: Array, ndim: int) -> Array:
    """Adds axes to the mask's end, up to a rank."""
    return jnp.expand_dims(mask, tuple(range(mask.ndim, ndim)))


def _zero_outside(mask: Array | None, x: Array) -> Array:
    return x if mask is None else jnp.where(expand(mask, x.ndim), x, 0)
