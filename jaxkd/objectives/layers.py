"""Layers of objectives, as pairs of functions: dense, convolution, BatchNorm.

Maps are ``[batch, height, width, channels]``. A layer's parameters are a dict of float32 arrays; it computes in float32
or better for any dtype of the features. A paper's "1×1 convolution" is `dense`, which computes the same and also
applies to vectors and tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import losses
from jaxkd._core import checks
from jaxkd._core.batch_norm import by_replica, running, share_of, statistics
from jaxkd.objectives._tokens import expand, feature_mask, mask_feature, token_mask
from jaxkd.types import Array, Context, ObjectiveVars

MOMENTUM, EPSILON = 0.9, 1e-5  # BatchNorm's defaults in PyTorch, which calls this momentum 0.1

__all__ = [
    "batch_norm",
    "batch_norm_init",
    "connector",
    "connector_init",
    "conv",
    "conv_init",
    "dense",
    "dense_init",
    "unit",
]


def dense_init(key: Array, channels: int, outputs: int, *, bias: bool = True) -> dict[str, Array]:
    """Initializes a linear map of the last axis.

    >>> jax.tree.map(jnp.shape, dense_init(jax.random.key(0), 3, 5))
    {'bias': (5,), 'kernel': (3, 5)}
    """
    return kernel_init(key, (channels, outputs), bias=bias)


def dense(params: dict[str, Array], x: Array) -> Array:
    """Maps the last axis of ``[..., features]`` linearly; on maps, a 1×1 convolution.

    >>> dense({"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)}, jnp.ones((4, 2)))[0]
    Array([3.], dtype=float32)
    """
    x, kernel = _promote(x, params["kernel"])
    return _biased(x @ kernel, params)


def conv_init(key: Array, size: int, channels: int, outputs: int, *, bias: bool = True) -> dict[str, Array]:
    """Initializes a convolution with a square kernel.

    >>> jax.tree.map(jnp.shape, conv_init(jax.random.key(0), 3, 2, 5, bias=False))
    {'kernel': (3, 3, 2, 5)}
    """
    return kernel_init(key, (size, size, channels, outputs), bias=bias)


def conv(params: dict[str, Array], x: Array) -> Array:
    """Convolves a map with stride 1 and zero padding to the same size.

    >>> conv({"kernel": jnp.ones((3, 3, 1, 1))}, jnp.ones((1, 3, 3, 1)))[0, 1, :, 0]
    Array([6., 9., 6.], dtype=float32)
    """
    x, kernel = _promote(x, params["kernel"])
    mapped = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return _biased(mapped, params)


def batch_norm_init(channels: int) -> ObjectiveVars:
    """Initializes the parameters and running statistics of a BatchNorm.

    >>> batch_norm_init(1).state
    {'mean': Array([0.], dtype=float32), 'var': Array([1.], dtype=float32)}
    """
    # Four arrays rather than two used twice: a train state is donated, and a buffer can be donated only once.
    return ObjectiveVars(
        {"scale": jnp.ones(channels, jnp.float32), "bias": jnp.zeros(channels, jnp.float32)},
        {"mean": jnp.zeros(channels, jnp.float32), "var": jnp.ones(channels, jnp.float32)},
    )


def batch_norm(
    params: dict[str, Array],
    state: dict[str, Array],
    x: Array,
    *,
    mask: Array | None,
    axis_name: str | None,
    train: bool,
) -> tuple[Array, dict[str, Array]]:
    """Applies BatchNorm over the last axis, with the statistics of unmasked entries.

    Each replica, by default each device's share of the batch, has its own statistics (``replicas=`` of
    `jaxkd.parallel`).

    Args:
      params: ``scale`` and ``bias``, from `batch_norm_init`.
      state: the running ``mean`` and ``var``.
      x: feature ``[batch, ..., features]``, finite also where it is masked.
      mask: mask over examples ``[batch]`` or tokens ``[batch, ...]``, or None for all.
      axis_name: the mapped axis that splits the batch, or None.
      train: normalizes by the batch's statistics and updates the running ones; otherwise the running statistics
        normalize, and are returned unchanged. An update moves them by a tenth, with the biased variance, as in Flax
        (PyTorch's is unbiased).

    Returns:
      The normalized features and the new state.

    >>> variables = batch_norm_init(1)
    >>> x = jnp.array([[1.0], [3.0], [100.0]])
    >>> mask = jnp.array([True, True, False])
    >>> y, state = batch_norm(*variables, x, mask=mask, axis_name=None, train=True)
    >>> y[:2, 0].round(3), state["mean"]
    (Array([-1.,  1.], dtype=float32), Array([0.2], dtype=float32))
    """
    (x,) = _promote(x)
    mean, var = state["mean"][None], state["var"][None]
    if train:
        examples, tokens = (mask, None) if mask is None or mask.ndim == 1 else (None, expand(mask, x.ndim))
        share = share_of(examples, axis_name, None if mask is None else mask.shape[0])
        mean, var, count = statistics(x, -1, share, fast=False, mask=tokens)
        moved = (running(state[name], new, MOMENTUM, count) for name, new in (("mean", mean), ("var", var)))
        # The state keeps its dtype, as a scan over steps requires, and no gradient flows through it.
        state = {
            name: jax.lax.stop_gradient(new).astype(state[name].dtype)
            for name, new in zip(("mean", "var"), moved, strict=True)
        }

    def normalize(x: Array, mean: Array, var: Array) -> Array:
        scale = jax.lax.rsqrt(var + EPSILON) * params["scale"]
        return (x - _row(mean, x.ndim)) * _row(scale, x.ndim) + _row(params["bias"], x.ndim)

    return by_replica(normalize, x, mean, var), state


def connector_init(key: Array, channels: int, outputs: int) -> ObjectiveVars:
    """Initializes the parameters and state of a `connector`.

    >>> jax.tree.map(jnp.shape, connector_init(jax.random.key(0), 3, 5).params)
    {'kernel': (3, 5), 'norm': {'bias': (5,), 'scale': (5,)}}
    """
    norm = batch_norm_init(outputs)
    return ObjectiveVars({**dense_init(key, channels, outputs, bias=False), "norm": norm.params}, norm.state)


def connector(params: Any, state: Any, x: Array, context: Context, *, train: bool) -> tuple[Array, Any]:
    """Applies a 1×1 convolution without a bias, then BatchNorm."""
    x = dense({"kernel": params["kernel"]}, x)
    mask = feature_mask(context, x.shape)
    return batch_norm(params["norm"], state, x, mask=mask, axis_name=context.axis_name, train=train)


def kernel_init(key: Array, shape: tuple[int, ...], *, bias: bool = True) -> dict[str, Array]:
    """Initializes a kernel by `jax.nn.initializers.lecun_normal`, and a bias of zeros.

    >>> jax.tree.map(jnp.shape, kernel_init(jax.random.key(0), (3, 5)))
    {'bias': (5,), 'kernel': (3, 5)}
    """
    size = math.prod(shape)
    deviation = np.sqrt(np.float32(shape[-1] / size)) / np.float32(0.87962566103423978)  # of the truncated normal
    # Each draw depends on its index alone, so one program of a power of two serves all kernels of up to this size:
    # a program for each shape takes longer to compile than a step of hundreds of hints to trace.
    drawn = _truncated_normal(key, 1 << (size - 1).bit_length())
    if not isinstance(drawn, jax.core.Tracer):
        drawn = np.asarray(drawn)
    params = {"kernel": drawn[:size].reshape(shape) * deviation}
    if bias:
        params["bias"] = np.zeros(shape[-1], np.float32)
    # Unlike `jnp.array`, this compiles nothing. Parameters are donated, so they own their memory.
    return {name: jax.device_put(x, may_alias=False) for name, x in params.items()}


@functools.partial(jax.jit, static_argnums=1)
def _truncated_normal(key: Array, size: int) -> Array:
    return jax.random.truncated_normal(key, -2, 2, (size,), jnp.float32)


def pool_to_match(name: str, student: Array, teacher: Array) -> tuple[Array, Array]:
    """Brings two maps to one size, in float32 or better.

    On each axis the larger map is adaptive-average-pooled to the size of the smaller. Features of other ranks need the
    same positions. Errors begin with ``name``.

    >>> [x.shape for x in pool_to_match("f", jnp.ones((2, 8, 8, 3)), jnp.ones((2, 4, 4, 5)))]
    [(2, 4, 4, 3), (2, 4, 4, 5)]
    """
    source, target = student.shape, teacher.shape
    size = slice(1, 1) if len(source) == 4 else slice(1, -1)
    if len(source) != len(target) or len(source) < 2 or source[0] != target[0] or source[size] != target[size]:
        raise ValueError(
            f"{name}: expected two features that differ in channels, or maps [batch, height, width, channels] that may "
            f"differ in size too; got {list(source)} for the student and {list(target)} for the teacher."
        )
    for side, x in (("student", student), ("teacher", teacher)):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"{name}: expected floating-point features, got {checks.shape(x)} for the {side}.")
    student, teacher = (x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (student, teacher))
    return losses.match_size(student, teacher) if len(source) == 4 else (student, teacher)


def maps(name: str, features: Sequence[Any]) -> None:
    """Raises unless all features, or their shapes, are maps.

    >>> maps("review", [jax.ShapeDtypeStruct((2, 8), "float32")])
    Traceback (most recent call last):
    ValueError: review: expected a map [batch, height, width, channels], got float32[2, 8].
    """
    for feature in features:
        if len(feature.shape) != 4:
            raise ValueError(f"{name}: expected a map [batch, height, width, channels], got {checks.shape(feature)}.")


def flatten(x: Array) -> Array:
    """Flattens ``[batch, ...]`` to ``[batch, features]``.

    >>> flatten(jnp.ones((0, 2, 3))).shape
    (0, 6)
    """
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))  # a size of -1 is ambiguous for an empty batch


def position_mean(context: Context, x: Array) -> Array:
    """Averages a feature ``[batch, ..., features]`` over its unmasked tokens.

    Masked examples, and those without any token, give 0.

    >>> context = Context({}, {}, {"mask": jnp.array([[True, False], [True, True]])}, 0)
    >>> position_mean(context, jnp.arange(4.0).reshape(2, 2, 1))
    Array([[0. ],
           [2.5]], dtype=float32)
    """
    rows = mask_feature(context, x).reshape(x.shape[0], math.prod(x.shape[1:-1]), x.shape[-1])
    mask = token_mask(context, x.shape)
    if mask is None:
        return rows.mean(axis=1)
    count = jnp.sum(mask, axis=tuple(range(1, x.ndim - 1)), dtype=rows.dtype)
    return jnp.sum(rows, axis=1) / jnp.maximum(count, 1)[:, None]


def unit(x: Array) -> Array:
    """Divides rows by their L2 norm; a row with a norm below 1e-12 becomes zero.

    Such a row has no direction; its gradient is zero, where that of the quotient would be NaN or infinite.

    >>> unit(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
    Array([[0.6, 0.8],
           [0. , 0. ]], dtype=float32)
    """
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    present = square > 1e-24
    return jnp.where(present, x * jax.lax.rsqrt(jnp.where(present, square, 1)), 0)


def _promote(*arrays: Array) -> tuple[Array, ...]:
    dtype = jnp.result_type(*arrays, jnp.float32)
    return tuple(x.astype(dtype) for x in arrays)


def _biased(x: Array, params: dict[str, Array]) -> Array:
    return x + _row(params["bias"], x.ndim) if "bias" in params else x


def _row(x: Array, ndim: int) -> Array:
    return x.reshape((1,) * (ndim - 1) + (-1,))
