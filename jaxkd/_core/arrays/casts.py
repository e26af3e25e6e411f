"""Casts between dtypes that keep finite values finite."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.types import PyTree


def cast(x: Any, dtype: Any = None) -> Any:
    """Converts numbers to a dtype; finite values beyond its range are clipped.

    The plain conversion makes an infinity of them: of ``finfo(float32).min``, a common value in attention masks, in
    bfloat16 and float16. Infinities and NaN stay what they are. The derivative is that of the conversion, and 0 where a
    value is clipped. Integers on the host must be values of the dtype, because a clipped label is another label.

    Args:
      x: an array. One of NumPy stays one, in a dtype that JAX has.
      dtype: the dtype, floating point if the array is; None for the array's own, without 64 bits unless JAX has them
        enabled.

    Raises:
      ValueError: an integer in an array of NumPy is beyond the range of the dtype.

    >>> cast(jnp.array([-3.4e38, -jnp.inf, 1.5]), jnp.float16)
    Array([-6.55e+04,      -inf,  1.50e+00], dtype=float16)
    >>> cast(np.array([1e300, 2.0]))
    array([3.4028235e+38, 2.0000000e+00], dtype=float32)
    """
    if isinstance(x, jax.Array) and dtype is None:
        return x
    lib: Any = jnp if isinstance(x, jax.Array) else np
    x = lib.asarray(x)
    dtype = jax.dtypes.canonicalize_dtype(x.dtype if dtype is None else dtype)
    if x.dtype == dtype:
        return x
    with np.errstate(over="ignore", invalid="ignore"):
        y = x.astype(dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        if lib is np and not np.array_equal(x, y):
            raise ValueError(
                f"expected integers that fit {dtype}, got {x.dtype} from {x.min()} to {x.max()}. Number them anew, or "
                "enable 64 bits: jax.config.update('jax_enable_x64', True)."
            )
        return y
    if jnp.finfo(dtype).max >= jnp.finfo(x.dtype).max:
        return y
    # Compared after the conversion: the largest value of the new dtype may not be a value of the old one.
    largest = jnp.finfo(dtype).max
    beyond = lib.isfinite(x) & ~lib.isfinite(y)
    return lib.where(beyond, lib.where(lib.signbit(x), -largest, largest).astype(dtype), y)


def cast_like(tree: PyTree, like: PyTree) -> PyTree:
    """Casts the arrays of a tree to the dtypes of another; floats as `cast` does.

    >>> cast_like({"n": jnp.ones(1)}, {"n": jnp.ones(1, int)})
    {'n': Array([1], dtype=int32)}
    """

    def leaf(x: Any, like: Any) -> Any:
        return cast(x, like.dtype) if jnp.issubdtype(like.dtype, jnp.floating) else x.astype(like.dtype)

    return jax.tree.map(leaf, tree, like)


def cast_floats(tree: PyTree, dtype: Any) -> PyTree:
    """Casts the floating-point arrays of a tree as `cast` does.

    >>> cast_floats({"w": jnp.ones(1), "n": jnp.ones(1, int)}, jnp.float16)
    {'n': Array([1], dtype=int32), 'w': Array([1.], dtype=float16)}
    """

    def leaf(x: Any) -> Any:
        return cast(x, dtype) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) else x

    return jax.tree.map(leaf, tree)
