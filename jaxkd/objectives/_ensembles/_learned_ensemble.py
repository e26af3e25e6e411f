"""Soft targets of several teachers, with ensemble weights learned from the labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core import checks
from jaxkd._core.batches import lookup, mask_of_shape
from jaxkd.objectives._checks import positive
from jaxkd.objectives._compose import add_loss, at_step, reduce_values
from jaxkd.types import Array, Context, Mean, Objective, ObjectiveOut, ObjectiveVars, Schedule


def learned_ensemble(
    student: str = "student/logits",
    teachers: Sequence[str] = ("teacher/a/logits", "teacher/b/logits"),
    label_path: str = "batch/label",
    *,
    temperature: float | Array | Schedule = 4.0,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """KL divergence from an ensemble of teachers with learned weights.

    ``T² KL(Σ_k w_k p_k ‖ p_s)`` with ``p = softmax(z / T)`` and learned weights ``w = softmax(a)``. The parameters a
    minimize the ensemble's own cross-entropy with the labels, ``−log Σ_k w_k softmax(z_k)[y]`` at the temperature 1,
    and receive no gradient of the student's loss, which would prefer teachers that are easy to match. You, Xu, Xu &
    Tao, "Learning from Multiple Teacher Networks", KDD 2017, average the softened probabilities with equal weights, the
    initial ones here; learning the weights by the likelihood of a mixture of experts, which is concave in w, is this
    library's choice.

    `weight` scales the student's loss only. The loss of a adds 0 to the value and is not scaled: under a weight
    schedule that starts at 0, the ensemble learns before the student.

    Args:
      student: path of the student's logits ``[..., classes]``.
      teachers: paths of the teachers' logits, all in one shape.
      label_path: path of integer classes ``[...]``.
      temperature: T, a number or a schedule of the step.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` with the parameter ``weights`` ``[teachers]``, the logits a. Its metrics include the ensemble's
      cross-entropy ``nll`` and each teacher's weight, ``share/a`` for ``"teacher/a/logits"``.

    Raises:
      ValueError: there are no teachers, or one is given twice; and from ``init``: a path does not exist, shapes differ,
        or the labels are not integers.

    >>> objective = learned_ensemble()
    >>> sure, unsure = jnp.array([[4.0, 0.0], [0.0, 4.0]]), jnp.zeros((2, 2))
    >>> context = Context({"logits": unsure}, {"a/logits": sure, "b/logits": unsure}, {"label": jnp.array([0, 1])}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> out = objective.apply(params, {}, context, None)
    >>> out.metrics["share/a"].sum, out.value.round(4)
    (Array(0.5, dtype=float32), Array(0.431, dtype=float32))
    >>> jax.grad(lambda p: objective.apply(p, {}, context, None).value)(params)["weights"].round(4)
    Array([-0.1626,  0.1626], dtype=float32)
    """
    teachers = tuple(teachers) if not isinstance(teachers, str) else (teachers,)
    if not teachers or len(set(teachers)) != len(teachers):
        got = list(teachers) if teachers else "none"
        raise ValueError(f"learned_ensemble, teachers: expected the paths of different teachers' logits, got {got}.")

    if not callable(temperature):
        positive("learned_ensemble", temperature=temperature)

    def init(key: Array, context: Context) -> ObjectiveVars:
        del key
        params = {"weights": jnp.zeros(len(teachers), jnp.float32)}
        # An abstract evaluation raises the errors of the first step; no axis is mapped at initialization.
        jax.eval_shape(lambda p, c: apply(p, {}, c, None).value, params, context._replace(axis_name=None))
        return ObjectiveVars(params)

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del key
        scale = at_step(temperature, context.step)
        logits = _common_dtype([jnp.asarray(lookup(context, path)) for path in teachers], teachers)
        mask = mask_of_shape(context, logits[0].shape[:-1])
        log_weights = jax.nn.log_softmax(params["weights"])
        target = jax.lax.stop_gradient(_average(logits, log_weights, scale))
        values = losses.soft_target_kl(lookup(context, student), target, temperature=scale, where=mask)
        nll = _mixture_nll(logits, log_weights, lookup(context, label_path), mask)
        out = reduce_values(values, mask, weight, context, state, nll=nll)
        nll = nll - jax.lax.stop_gradient(nll)  # the gradient of the loss without its value
        shares = jax.lax.stop_gradient(jnp.exp(log_weights))
        named = {f"share/{_name(path)}": Mean(shares[k], jnp.ones_like(shares[k])) for k, path in enumerate(teachers)}
        return add_loss(out._replace(metrics={**out.metrics, **named}), nll, mask, context)

    return Objective(init, apply)


def _common_dtype(logits: list[Array], teachers: tuple[str, ...]) -> list[Array]:
    """Casts logits of one shape to one dtype, float32 or better."""
    if any(z.shape != logits[0].shape for z in logits):
        got = checks.describe(dict(zip(teachers, logits, strict=True)))
        raise ValueError(
            f"learned_ensemble: expected logits of one shape, got {got}. Give teachers of other classes terms of their "
            "own, or expand their logits to all classes with jaxkd.wrappers.expand_classes."
        )
    dtype = jnp.result_type(jnp.float32, *logits)
    return [z.astype(dtype) for z in logits]


def _average(logits: list[Array], log_weights: Array, temperature: Any) -> Array:
    """Logits of the averaged probabilities, ``T log Σ_k w_k softmax(z_k / T)``."""
    if len(logits) == 1:
        return logits[0]
    scaled = [jax.nn.log_softmax(z / temperature) + log_weights[k] for k, z in enumerate(logits)]
    return temperature * jax.nn.logsumexp(jnp.stack(scaled), axis=0)


def _mixture_nll(logits: list[Array], log_weights: Array, labels: Array, mask: Array | None) -> Array:
    """Computes ``−log Σ_k w_k p_k(y)``; 0 for a class that all teachers exclude."""
    log_p = jnp.stack([-losses.cross_entropy(jax.lax.stop_gradient(z), labels, where=mask) for z in logits])
    possible = jnp.any(~jnp.isneginf(log_p), axis=0)
    row = jnp.expand_dims(log_weights, tuple(range(1, log_p.ndim)))
    return jnp.where(possible, -jax.nn.logsumexp(jnp.where(possible[None], log_p, 0) + row, axis=0), 0)


def _name(path: str) -> str:
    return path.removeprefix("teacher/").removesuffix("/logits")
