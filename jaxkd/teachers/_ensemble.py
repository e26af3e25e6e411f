"""Several teachers as one: their averaged logits, and the outputs of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import checks
from jaxkd.types import Array, Batch, Outputs, PyTree, Teacher, Variables

Average = Callable[[Array, Array], Array]
"""``(logits [members, ..., classes], weights [members]) -> logits [..., classes]``."""


def average_logits(logits: Array, weights: Array) -> Array:
    """Computes the weighted mean of the members' logits.

    ``Σₖ wₖ zₖ``, at every temperature the normalized geometric mean of the members' probabilities.

    Args:
      logits: logits of all members, ``[members, ..., classes]``.
      weights: weights ``[members]`` of sum 1. A member of weight 0 is ignored, even if its logits are not finite.

    Returns:
      Logits ``[..., classes]``.

    >>> average_logits(jnp.array([[1.0, 0.0], [3.0, -2.0]]), jnp.array([0.5, 0.5]))
    Array([ 2., -1.], dtype=float32)
    """
    weights = jnp.expand_dims(weights, tuple(range(1, logits.ndim)))
    return jnp.sum(jnp.where(weights > 0, weights * logits, 0), axis=0)


def average_probabilities(temperature: float | Array = 1.0) -> Average:
    """Returns a function that averages the members' probabilities at a temperature.

    It computes the logits ``T log Σₖ wₖ softmax(zₖ / T)``, whose probabilities at temperature T are the weighted mean
    of the members' probabilities. You et al., "Learning from Multiple Teacher Networks", KDD 2017, with the T of the
    loss.

    Args:
      temperature: T > 0, the temperature of the loss; at any other one the result is not the mean.

    Returns:
      A function of logits ``[members, ..., classes]`` and weights ``[members]``, for `ensemble`.

    Raises:
      ValueError: the temperature is not positive.

    >>> logits = average_probabilities()(jnp.log(jnp.array([[0.9, 0.1], [0.3, 0.7]])), jnp.array([0.5, 0.5]))
    >>> jnp.exp(logits).round(3)
    Array([0.6, 0.4], dtype=float32)
    """
    if not isinstance(temperature, jax.core.Tracer) and not temperature > 0:  # `<= 0` would accept NaN
        raise ValueError(f"average_probabilities, temperature: expected a positive number, got {temperature}.")

    def average(logits: Array, weights: Array) -> Array:
        weights = jnp.expand_dims(weights, tuple(range(1, logits.ndim)))
        log_probs = jax.nn.log_softmax(logits / temperature)
        return temperature * jax.nn.logsumexp(log_probs, axis=0, b=jnp.broadcast_to(weights, logits.shape))

    return average


def ensemble(
    teachers: Mapping[str, Teacher] | Sequence[Teacher],
    *,
    weights: Mapping[str, float] | Sequence[float] | Array | None = None,
    average: Average = average_logits,
) -> Teacher:
    """A teacher that averages the logits of several teachers.

    Hinton, Vinyals & Dean, 2015, section 1; You et al., KDD 2017. Its outputs are the average, ``logits``, and all
    outputs of the members under their names, so that a term can read ``teacher/a/logits``.
    ``distill(..., metrics=jaxkd.metrics.per_teacher)`` evaluates each member. An ensemble of one returns that
    teacher's logits unmodified.

    Args:
      teachers: members by name; those of a sequence are named ``"0"``, ``"1"``, ... Any teacher can be a member, such
        as `jaxkd.teachers.ema` or another ensemble.
      weights: non-negative weight of each member, of sum 1; equal weights by default.
      average: `average_logits`, or ``average_probabilities(temperature)``.

    Returns:
      A `Teacher` whose state is its members' states by name.

    Raises:
      ValueError: there are no members, a name contains a slash, or the weights do not match the members; from
        ``apply``: a member has no logits, or the members' logits differ in shape.

    >>> from jaxkd import adapters, teachers
    >>> model = adapters.plain(lambda key, x: jnp.eye(2), lambda w, x: x @ w, inputs="x")
    >>> small, large = (teachers.frozen(model, Variables(scale * jnp.eye(2))) for scale in (1.0, 5.0))
    >>> teacher = ensemble({"a": small, "b": large}, weights={"a": 0.75, "b": 0.25})
    >>> batch = {"x": jnp.ones((1, 2))}
    >>> out = teacher.apply(teacher.init(jax.random.key(0), batch, None), batch, key=None)
    >>> sorted(out), out["logits"]
    (['a/logits', 'b/logits', 'logits'], Array([[2., 2.]], dtype=float32))
    """
    if hasattr(teachers, "init"):
        raise TypeError("ensemble: expected several teachers, a dict by name or a list, got one.")
    named = teachers if isinstance(teachers, Mapping) else {str(i): teacher for i, teacher in enumerate(teachers)}
    members = dict(named)
    if not members or (slashed := [name for name in members if "/" in name]):
        expected = "members whose names contain no slash" if members else "at least one member"
        raise ValueError(f"ensemble: expected {expected}, got {slashed if members else 'none'}.")
    for name, member in members.items():
        checks.contract(f"ensemble, {name!r}", member, Teacher)
    shares = _weights(list(members), weights)

    def init(key: Array, batch: Batch, student: Variables | None) -> PyTree:
        keys = {name: None if key is None else jax.random.fold_in(key, i) for i, name in enumerate(members)}
        return {name: member.init(keys[name], batch, student) for name, member in members.items()}

    def apply(state: PyTree, batch: Batch, *, key: Array | None) -> Outputs:
        outputs: dict[str, Array] = {}
        logits = []
        for i, (name, member) in enumerate(members.items()):
            out = member.apply(state[name], batch, key=None if key is None else jax.random.fold_in(key, i))
            checks.known("logits", {k: checks.shape(x) for k, x in out.items()}, f"ensemble, output of {name!r}")
            outputs |= {f"{name}/{output}": value for output, value in out.items()}
            logits.append(out["logits"])
        return {**outputs, "logits": _combined(dict(zip(members, logits, strict=True)))}

    def _combined(logits: Mapping[str, Array]) -> Array:
        first, *others = logits.values()
        if any(other.shape != first.shape for other in others):
            raise ValueError(f"ensemble: expected logits of one shape, got {checks.describe(logits)}.")
        if not others:
            return first
        dtype = jnp.result_type(jnp.float32, *logits.values())
        return average(jnp.stack([x.astype(dtype) for x in logits.values()]), jnp.asarray(shares, dtype))

    def update(state: PyTree, student: Variables, step: Any) -> PyTree:
        return {name: member.update(state[name], student, step) for name, member in members.items()}

    return Teacher(init, apply, update)


def _weights(names: list[str], weights: Any) -> Any:
    """Returns the weight of each member, in their order."""
    if weights is None:
        return np.full(len(names), 1 / len(names))
    if isinstance(weights, Mapping):
        if sorted(weights) != sorted(names):
            raise ValueError(f"ensemble, weights: expected a weight for each of {names}, got {list(weights)}.")
        weights = [weights[name] for name in names]
    if any(isinstance(w, jax.core.Tracer) for w in jax.tree.leaves(weights)):
        weights = jnp.stack([jnp.asarray(w) for w in weights])  # a sweep traces them: only their shape is known
        values = None
    else:
        weights = values = np.asarray(weights, np.float64)
    if weights.shape != (len(names),) or (
        values is not None and not ((values >= 0).all() and abs(values.sum() - 1) <= 1e-5)
    ):
        raise ValueError(
            f"ensemble, weights: expected {len(names)} non-negative numbers of sum 1, got "
            f"{list(weights.shape) if values is None else values.tolist()}."
        )
    return weights
