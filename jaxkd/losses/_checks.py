"""Checks of arguments: errors say what was expected, what came and what to do.

Dtypes, shapes and masks are known while tracing and always checked. A hyperparameter is checked where its value is
known; a traced one (a schedule of the step, a learned temperature) passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array


def floating(name: str, x: Any, form: str, *, rank: int | None = None, least_rank: int = 0) -> Array:
    """Returns floating-point ``x`` of the rank, or at least ``least_rank``, upcast.

    The result is float32 or better. ``form`` is the kind and the shape, such as ``logits [..., classes]``.
    """
    x = jnp.asarray(x)
    fits = x.ndim >= least_rank if rank is None else x.ndim == rank
    if not jnp.issubdtype(x.dtype, jnp.floating) or not fits:
        raise ValueError(f"{name}: expected floating-point {form}, got {x.dtype}{list(x.shape)}.")
    return widen(x)


def widen(x: Array) -> Array:
    """Returns floating-point numbers in float32 or better.

    The cotangent of a float16 array, which is narrowed again, is clipped to the range of float16: a finite one becomes
    no infinity. The dtype alone decides, so that forward-mode differentiation works in all others.
    """
    if x.dtype == jnp.float16:
        widened: Array = _from_half(x)
        return widened
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@jax.custom_vjp
def _from_half(x: Array) -> Array:
    return x.astype(jnp.float32)


def _from_half_forward(x: Array) -> tuple[Array, None]:
    return _from_half(x), None


def _from_half_backward(_: None, cotangent: Array) -> tuple[Array]:
    largest = float(jnp.finfo(jnp.float16).max)
    clipped = jnp.where(jnp.isfinite(cotangent), jnp.clip(cotangent, -largest, largest), cotangent)
    return (clipped.astype(jnp.float16),)


_from_half.defvjp(_from_half_forward, _from_half_backward)


def logits(name: str, x: Any) -> Array:
    """Returns logits ``[..., classes]`` in float32 or better."""
    return floating(name, x, "logits [..., classes]", least_rank=1)


def class_logits(name: str, x: Any) -> Array:
    """Returns logits of two or more classes in float32 or better."""
    x = logits(name, x)
    several(name, x, x.shape[-1])
    return x


def several(name: str, x: Array, size: int, what: str = "classes", advice: str | None = None) -> None:
    """Raises unless a softmax is over two or more entries: over one it is constant."""
    if size < 2:
        advice = advice or (
            "binary_kl (of a teacher) and binary_cross_entropy (of labels) are the losses of one logit, by a sigmoid"
        )
        raise ValueError(
            f"{name}: expected two or more {what}, got {size} in {x.dtype}{list(x.shape)}. A softmax over one is 1 "
            f"whatever the values, and the loss constant; {advice}."
        )


def same_shape(student: Array, x: Array, advice: str, *, name: str = "teacher", other: str = "the student") -> None:
    """Raises unless ``x`` has the student's shape: no loss broadcasts."""
    if x.shape != student.shape:
        raise ValueError(
            f"{name}: expected {other}'s shape {list(student.shape)}, got {list(x.shape)}. Nothing is broadcast; "
            f"{advice}."
        )


def same_batch(student: Array, teacher: Array, name: str = "teacher") -> None:
    """Raises unless both have one leading dimension."""
    if teacher.shape[0] != student.shape[0]:
        batch, came = student.shape[0], f"{teacher.dtype}{list(teacher.shape)}"
        raise ValueError(f"{name}: expected the student's batch of {batch}, got {came}.")


def mask(where: Any, shape: tuple[int, ...], name: str = "where", finer: tuple[int, ...] | None = None) -> Array | None:
    """Returns a mask of this shape, or of a finer one, as an array, and None for None."""
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape not in (shape, finer):
        parts = "" if finer is None else f" (or bool{list(finer)} for their parts)"
        raise ValueError(
            f"{name}: expected bool{list(shape)}{parts}, True for the entries to include, got {where.dtype}"
            f"{list(where.shape)}."
        )
    return where


def mask_or_ones(where: Any, shape: tuple[int, ...], name: str = "where") -> Array:
    """Returns a mask of this shape, and one that includes every entry for None."""
    checked = mask(where, shape, name)
    return jnp.ones(shape, bool) if checked is None else checked


def labels(labels: Any, logits: Array) -> tuple[Array, Array]:
    """Returns integer labels for logits, and True for those within ``[0, classes)``."""
    labels = token_labels(labels, logits.shape[:-1], f"logits {list(logits.shape)}")
    return labels, (labels >= 0) & (labels < logits.shape[-1])


def token_labels(labels: Any, shape: tuple[int, ...], of: str = "hidden states [..., hidden]") -> Array:
    """Returns integer labels of this shape, as int32 or wider."""
    labels = jnp.asarray(labels)
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.shape != shape:
        raise ValueError(
            f"labels: expected integer classes {list(shape)} for {of}, got {labels.dtype}{list(labels.shape)}. "
            "soft_cross_entropy takes probabilities."
        )
    return integers(labels)


def listed(weights: Any, indices: Any, shape: tuple[int, ...], student: str) -> tuple[Array, Array]:
    """Returns weights of listed classes ``[*shape, k]`` and the integer classes.

    ``student`` says what has the leading dimensions ``shape``, for errors.
    """
    weights, indices = floating("weights", weights, "weights [..., k]", least_rank=1), jnp.asarray(indices)
    if weights.shape[:-1] != shape or not weights.shape[-1]:
        raise ValueError(f"weights: expected {[*shape, 'k']} for {student}, got {list(weights.shape)}.")
    if not jnp.issubdtype(indices.dtype, jnp.integer) or indices.shape != weights.shape:
        raise ValueError(
            f"indices: expected an integer class for each of the weights {list(weights.shape)}, got "
            f"{indices.dtype}{list(indices.shape)}."
        )
    return weights, integers(indices)


def integers(x: Array) -> Array:
    """Returns integers of 32 bits or more: an int8 cannot hold the number of classes.

    Of uint32, the common type is int64, and without 64 bits int32, which JAX before 0.8 warns of.
    """
    return x.astype(jax.dtypes.canonicalize_dtype(jnp.promote_types(x.dtype, jnp.int32)))


def targets(name: str, x: Any, logits: Array) -> Array:
    """Returns floating-point targets of the logits' shape, upcast."""
    x = floating(name, x, "probabilities [..., classes]", least_rank=1)
    if x.shape != logits.shape:
        raise ValueError(
            f"{name}: expected a probability for each of the logits {list(logits.shape)}, got {x.dtype}{list(x.shape)}."
            " A label for each example, as cross_entropy takes it, is an integer."
        )
    return x


def positive(name: str, value: Any, shape: tuple[int, ...] = (), *, expected: str = "a positive number") -> Any:
    """Returns a positive number, or with ``shape`` one for each entry."""
    return number(name, value, expected, lambda x: x > 0, shape)


def not_negative(name: str, value: Any) -> Any:
    """Returns a number that is 0 or more."""
    return number(name, value, "at least 0", lambda x: x >= 0)


def fraction(name: str, value: Any) -> Any:
    """Returns a number from 0 to 1."""
    return number(name, value, "a number from 0 to 1", lambda x: (x >= 0) & (x <= 1))


def probability(name: str, value: Any) -> Any:
    """Returns a number above 0 and at most 1."""
    return number(name, value, "a probability above 0 and at most 1", lambda x: (x > 0) & (x <= 1))


def finite(name: str, value: Any) -> Any:
    """Returns a number of any sign."""
    return number(name, value, "a finite number", lambda x: x == x)


def temperature(temperature: Any, dtype: Any, shape: tuple[int, ...] = ()) -> Array:
    """Returns a positive temperature, one or one per entry, broadcast to ``shape``."""
    return jnp.broadcast_to(jnp.asarray(positive("temperature", temperature, shape), dtype), shape)


def flag(name: str, value: Any) -> bool:
    """Returns True or False, which has to be known while tracing."""
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}: expected True or False, got {value!r}.")
    return bool(value)


def static(name: str, value: Any) -> float:
    """Returns a number that the program depends on, such as which formula it computes."""
    if isinstance(value, jax.core.Tracer):
        raise ValueError(f"{name}: expected a number that is known while tracing, got {value}; pass a Python float.")
    return float(value)


def whole(name: str, value: Any, *, least: int = 1, most: int | None = None, expected: str | None = None) -> int:
    """Returns an integer of the range, which has to be known while tracing."""
    kind = getattr(value, "dtype", None)
    fits = type(value) is int or (kind is not None and jnp.issubdtype(kind, jnp.integer) and jnp.shape(value) == ())
    fits = fits and not isinstance(value, jax.core.Tracer) and int(value) >= least
    if not fits or (most is not None and int(value) > most):
        expected = expected or f"an integer of at least {least}"
        known = ", known while tracing" if isinstance(value, jax.core.Tracer) else ""
        raise ValueError(f"{name}: expected {expected}{known}, got {value!r}.")
    return int(value)


def number(name: str, value: Any, expected: str, inside: Any, shape: tuple[int, ...] = ()) -> Any:
    """Returns a finite number for which ``inside`` is true, or an array of them.

    The number of a traced value is unknown: only its shape and its dtype are checked.
    """
    array = hasattr(value, "dtype") and hasattr(value, "shape")
    real = type(value) in (int, float) or (
        array and (jnp.issubdtype(value.dtype, jnp.floating) or jnp.issubdtype(value.dtype, jnp.integer))
    )
    if real and jnp.shape(value) not in ((), shape):
        scalar = f"a scalar, or one for each entry of {list(shape)}" if shape else "a scalar"
        raise ValueError(f"{name}: expected {scalar}, got {value.dtype}{list(value.shape)}.")
    if real and not isinstance(value, jax.core.Tracer) and getattr(value, "is_fully_addressable", True):
        known = np.asarray(value, np.float64)
        real = bool(np.all(np.isfinite(known) & inside(known)))
    if not real:
        raise ValueError(f"{name}: expected {expected}, got {value}.")
    return value
