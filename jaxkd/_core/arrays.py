"""Dtypes and shapes of the arrays of a state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.types import Array, PyTree


def strongly_typed(tree: PyTree) -> PyTree:
    """Returns a tree without weakly typed arrays, such as those made from ``1.0``.

    The first step would return them strongly typed, and the second would be traced again.
    """

    def convert(x: Any) -> Array:
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else jax.lax.convert_element_type(x, x.dtype)

    return jax.tree.map(convert, tree)


def shape_of(x: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of an array once it is a JAX array.

    NumPy's int64 labels, for instance, become int32 unless 64 bits are enabled.
    """
    dtype = x.dtype if hasattr(x, "dtype") else jnp.asarray(x).dtype
    extended = jnp.issubdtype(dtype, jax.dtypes.extended)
    return jax.ShapeDtypeStruct(jnp.shape(x), dtype if extended else jax.dtypes.canonicalize_dtype(dtype))
