"""An ensemble of teachers with learned weights: by how well the combination answers, not by what suits the student."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import checks, losses
from jaxkd.objectives.compose import Schedule, lookup, mean, weighted
from jaxkd.types import Array, Context, LossOut, LossVars, Mean, Objective

__all__ = ["learned_ensemble"]


def learned_ensemble(
    student: str = "student/logits",
    teachers: Sequence[str] = ("teacher/a/logits", "teacher/b/logits"),
    labels: str = "batch/label",
    *,
    temperature: float | Array | Schedule = 4.0,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Soft targets of a weighted ensemble, ``T² KL(Σ_k w_k p_k ‖ p_s)`` with learned weights ``w = softmax(a)``.

    ``p = softmax(z / T)``, and a learns from the labels: it descends the combination's own cross-entropy
    ``−log Σ_k w_k softmax(z_k)[y]``, at the temperature 1, and nothing of the student's loss. The weights can therefore
    not be chosen for being easy to match. You, Xu, Xu & Tao, "Learning from Multiple Teacher Networks", KDD 2017,
    average the softened probabilities with equal weights, where a begins; the weights by the likelihood of a mixture of
    experts are this library's choice. The likelihood is concave in w: what is best nearby is the best there is.

    The weight is that of the student's loss. What teaches a has a value of 0 and is not scaled: a schedule that begins
    at 0 lets the ensemble learn before the student does. One teacher gives ``losses.soft_target_kl`` itself.

    Args:
      student: path of the student's logits ``[..., classes]``.
      teachers: paths of the teachers' logits, which are of one shape.
      labels: path of the integer classes ``[...]``.
      temperature: T, a number or a schedule of the step.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` that owns ``weights`` ``[teachers]``, the logarithms a. Its metrics include the combination's
      cross-entropy ``nll`` and each teacher's weight, ``share/a`` for ``"teacher/a/logits"``.

    Raises:
      ValueError: there are no teachers, or one is named twice; and when it is initialised or applied: a path does not
        exist, shapes differ, or the labels are not integers.

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

    def init(key: Array, context: Context) -> LossVars:
        del key
        params = {"weights": jnp.zeros(len(teachers), jnp.float32)}
        alone = context._replace(axis_name=None)
        jax.eval_shape(lambda p, c: apply(p, {}, c, None).value, params, alone)
        return LossVars(params)

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        del key
        scale = temperature(context.step) if callable(temperature) else temperature
        logits = _same([jnp.asarray(lookup(context, path)) for path in teachers], teachers)
        mask = checks.example_mask(context.batch)
        if mask is not None:
            rows = tuple(range(1, logits[0].ndim - 1))
            mask = jnp.broadcast_to(jnp.expand_dims(mask, rows), logits[0].shape[:-1])
        log_weights = jax.nn.log_softmax(params["weights"])
        target = jax.lax.stop_gradient(_combined(logits, log_weights, scale))
        values = losses.soft_target_kl(lookup(context, student), target, temperature=scale, where=mask)
        nll = _surprise(logits, log_weights, lookup(context, labels), mask)
        out = weighted(values, mask, weight, context, state, nll=nll)
        learned = mean(nll, mask, context.axis_name)[0]
        shares = jax.lax.stop_gradient(jnp.exp(log_weights))
        named = {f"share/{_name(path)}": Mean(shares[k], jnp.ones_like(shares[k])) for k, path in enumerate(teachers)}
        return out._replace(
            value=out.value + (learned - jax.lax.stop_gradient(learned)), metrics={**out.metrics, **named}
        )

    return Objective(init, apply)


def _same(logits: list[Array], teachers: tuple[str, ...]) -> list[Array]:
    """In one dtype, float32 or better."""
    if any(z.shape != logits[0].shape for z in logits):
        found = checks.describe(dict(zip(teachers, logits, strict=True)))
        raise ValueError(
            f"learned_ensemble: expected logits of one shape, got {found}. Teachers of other classes have terms of "
            "their own, or logits of all classes by jaxkd.adapters.place_classes."
        )
    dtype = jnp.result_type(jnp.float32, *logits)
    return [z.astype(dtype) for z in logits]


def _combined(logits: list[Array], log_weights: Array, temperature: Any) -> Array:
    """``T log Σ_k w_k softmax(z_k / T)``: logits of the averaged probabilities at the temperature T."""
    if len(logits) == 1:
        return logits[0]
    weighed = [jax.nn.log_softmax(z / temperature) + log_weights[k] for k, z in enumerate(logits)]
    return temperature * jax.nn.logsumexp(jnp.stack(weighed), axis=0)


def _surprise(logits: list[Array], log_weights: Array, labels: Array, mask: Array | None) -> Array:
    """``−log Σ_k w_k p_k(y)`` ``[...]``; an example whose class no teacher has says nothing of the weights."""
    of_label = jnp.stack([-losses.cross_entropy(jax.lax.stop_gradient(z), labels, where=mask) for z in logits])
    possible = jnp.any(~jnp.isneginf(of_label), axis=0)
    row = jnp.expand_dims(log_weights, tuple(range(1, of_label.ndim)))
    return jnp.where(possible, -jax.nn.logsumexp(jnp.where(possible[None], of_label, 0) + row, axis=0), 0)


def _name(path: str) -> str:
    return path.removeprefix("teacher/").removesuffix("/logits")
