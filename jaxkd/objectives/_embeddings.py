"""Linear embeddings of the student's and the teacher's flattened features."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd._core.batches import lookup
from jaxkd.objectives._tokens import mask_feature
from jaxkd.objectives.layers import dense, dense_init, flatten, unit
from jaxkd.types import Array, Context

SIDES = ("student", "teacher")


def check_features(context: Context, paths: tuple[str, str]) -> None:
    """Raises unless both paths hold a floating-point feature ``[batch, ...]``."""
    for path in paths:
        feature = lookup(context, path)
        if len(feature.shape) < 2 or not jnp.issubdtype(feature.dtype, jnp.floating):
            raise ValueError(f"{path}: expected a floating-point feature [batch, ...], got {checks.shape(feature)}.")


def init_embeddings(keys: Iterable[Array], context: Context, paths: tuple[str, str], features: int) -> dict[str, Any]:
    """Initializes a linear map to ``features`` of the feature at each path."""
    sizes = (math.prod(lookup(context, path).shape[1:]) for path in paths)
    return {side: dense_init(k, n, features) for side, k, n in zip(SIDES, keys, sizes, strict=True)}


def embed(params: Any, context: Context, paths: tuple[str, str], *, normalize: bool = True) -> dict[str, Array]:
    """Embeds the features at both paths as ``[batch, features]``, normalized or not."""
    embedded = {}
    for side, path in zip(SIDES, paths, strict=True):
        embedding = dense(params[side], flatten(mask_feature(context, jnp.asarray(lookup(context, path)))))
        embedded[side] = unit(embedding) if normalize else embedding
    return embedded
