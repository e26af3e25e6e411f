"""Self-distillation without labels: views of an image get one distribution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core import batches, checks
from jaxkd._core.batches import lookup
from jaxkd.objectives._checks import positive, share
from jaxkd.objectives._compose import at_step, reduce_values
from jaxkd.objectives._tokens import mask_feature
from jaxkd.types import Array, Context, Mean, Objective, ObjectiveOut, ObjectiveVars, Schedule


class _Pairs(NamedTuple):
    """Which teacher views are targets of which student views."""

    weights: list[list[float]]  # of each student view, the weights of the teacher views, of sum 1
    shares: list[float]  # share of each student view among all pairs
    uses: list[float]  # share of each teacher view among all pairs


def dino(
    student: Sequence[str],
    teacher: Sequence[str],
    *,
    temperature: float | Array | Schedule = 0.1,
    teacher_temperature: float | Array | Schedule = 0.04,
    center_momentum: float | Array = 0.9,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Cross-entropy between a mean teacher's and the student's views of an image.

    Also known as: DINO (self-distillation with no labels).

    The mean of ``−Σ_k p_t(x)_k log p_s(x')_k`` over all pairs of a teacher's view x and another student's view x', with
    ``p_s = softmax(z_s / T_s)`` and ``p_t = softmax((z_t − c) / T_t)``. After every step the center follows the mean of
    the teacher's outputs over its views and the batch, ``c ← m c + (1 − m) mean z_t``. Caron et al., "Emerging
    Properties in Self-Supervised Vision Transformers", ICCV 2021, equations 1, 2 and 4. The small T_t sharpens the
    targets and the center keeps one output from dominating, so that the outputs do not collapse.

    The student's paths name the views of the teacher first, in the teacher's order, then the further small crops: the
    i-th student and the i-th teacher path belong to one view and form no pair. `jaxkd.data.multi_crop` draws the views,
    `jaxkd.wrappers.views` gives their outputs, `jaxkd.teachers.ema` the teacher, and the outputs are those of a
    `jaxkd.models.ProjectionHead`. The center is the mean over all devices.

    Args:
      student: paths of the student's outputs ``[batch, prototypes]``, one for each view.
      teacher: paths of the teacher's outputs for the first of these views.
      temperature: T_s > 0, a number or a schedule of the step.
      teacher_temperature: T_t > 0, a number or a schedule of the step; the paper warms up from 0.04 to 0.07.
      center_momentum: m from 0 to 1.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` with the center as state. It also reports ``kl``, the divergence from the targets;
      ``teacher_entropy``, the mean entropy of a target; and ``marginal_entropy``, the entropy of the mean target of all
      devices' batches, in nats. Collapsed outputs have either a marginal entropy of 0, since all targets are one
      prototype, or uniform targets: a teacher entropy of ``log prototypes`` with a KL of 0. An evaluation (without a
      key) leaves the center unchanged.

    Raises:
      ValueError: there are no views or no pairs, a number is out of range; and from ``init``: a path does not exist, or
        the outputs are not ``[batch, prototypes]`` of one shape.

    >>> objective = dino(("student/logits", "student/crop/logits"), ("teacher/logits",), center_momentum=0.5)
    >>> outputs = {"logits": jnp.array([[0.1, 0.0]]), "crop/logits": jnp.array([[0.1, 0.0]])}
    >>> context = Context(outputs, {"logits": jnp.array([[4.0, 0.0]])}, {}, 0)
    >>> out = objective.apply(*objective.init(jax.random.key(0), context), context, jax.random.key(0))
    >>> out.value.round(4), out.state["center"]
    (Array(0.3133, dtype=float32), Array([2., 0.], dtype=float32))
    """
    student, teacher = _paths("student", student), _paths("teacher", teacher)
    pairs = _pairs(len(student), len(teacher))
    for name, value in (("temperature", temperature), ("teacher_temperature", teacher_temperature)):
        if not callable(value):
            positive("dino", **{name: value})
    share("dino", center_momentum=center_momentum)

    def outputs(context: Context, paths: Sequence[str]) -> list[Any]:
        found = [lookup(context, path) for path in paths]
        shape = lookup(context, student[0]).shape
        for path, x in zip(paths, found, strict=True):
            if len(x.shape) != 2 or x.shape != shape or not jnp.issubdtype(x.dtype, jnp.floating):
                raise ValueError(
                    f"dino, {path}: expected outputs [batch, prototypes] of the shape of {student[0]}, {list(shape)}, "
                    f"got {checks.shape(x)}."
                )
        return found

    def init(key: Array, context: Context) -> ObjectiveVars:
        del key
        outputs(context, teacher)
        prototypes = outputs(context, student)[0].shape[1]
        return ObjectiveVars({}, {"center": jnp.zeros(prototypes, jnp.float32)})

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del params
        seen = [_float(mask_feature(context, x)) for x in outputs(context, student)]
        taught = [jax.lax.stop_gradient(_float(mask_feature(context, x))) for x in outputs(context, teacher)]
        mask = batches.example_mask(context.batch)
        sharpness = at_step(teacher_temperature, context.step)
        logs = [jax.nn.log_softmax((z - state["center"].astype(z.dtype)[None, :]) / sharpness) for z in taught]
        targets = [jnp.exp(x) for x in logs]
        entropies = [-jnp.sum(jnp.where(p > 0, p * x, 0), axis=-1) for p, x in zip(targets, logs, strict=True)]
        softness = at_step(temperature, context.step)
        # The cross-entropy is linear in the targets, so that each student view needs one, with its mean target.
        crossed = [
            losses.soft_cross_entropy(z / softness, _mixed(targets, own), where=mask)
            for z, own in zip(seen, pairs.weights, strict=True)
        ]
        values = _mixed(crossed, pairs.shares)
        teacher_entropy = _mixed(entropies, pairs.uses)
        out = reduce_values(
            values, mask, weight, context, state, kl=values - teacher_entropy, teacher_entropy=teacher_entropy
        )
        marginal, count = _mean(_mixed(targets, pairs.uses), mask, context.axis_name)
        entropy = -jnp.sum(jnp.where(marginal > 0, marginal * jnp.log(jnp.where(marginal > 0, marginal, 1)), 0))
        metrics = {**out.metrics, "marginal_entropy": Mean(entropy, (count > 0).astype(entropy.dtype))}
        if key is not None:
            new, count = _mean(_mixed(taught, pairs.uses), mask, context.axis_name)
            momentum = jnp.where(count > 0, jnp.asarray(center_momentum, new.dtype), 1)
            center = momentum * state["center"].astype(new.dtype) + (1 - momentum) * new
            state = {"center": center.astype(state["center"].dtype)}
        return out._replace(state=state, metrics=metrics)

    return Objective(init, apply)


def _paths(role: str, paths: Any) -> tuple[str, ...]:
    if isinstance(paths, str) or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"dino, {role}: expected a list of paths, one for each view, got {paths!r}.")
    return tuple(paths)


def _pairs(student: int, teacher: int) -> _Pairs:
    """Returns the pairs of all teacher views with the other student views."""
    if not 1 <= teacher <= student or student == 1:
        raise ValueError(
            "dino: expected at least one teacher view, and for each of them the same view of the student and others, "
            f"got {teacher} teacher views and {student} student views."
        )
    total = teacher * (student - 1)
    counts = [[float(i != j) for i in range(teacher)] for j in range(student)]
    sums = [sum(own) for own in counts]
    weights = [[count / max(own, 1) for count in row] for row, own in zip(counts, sums, strict=True)]
    return _Pairs(weights, [own / total for own in sums], [1 / teacher] * teacher)


def _mixed(arrays: Sequence[Array], weights: Sequence[float]) -> Array:
    """Returns the weighted sum of arrays, of which those of weight 0 are left out."""
    used = [weight * x for x, weight in zip(arrays, weights, strict=True) if weight]
    return sum(used[1:], used[0]) if used else jnp.zeros_like(arrays[0])


def _mean(x: Array, mask: Array | None, axis_name: str | None) -> tuple[Array, Array]:
    """Returns the mean over the unmasked examples of all devices, and their number."""
    rows = x if mask is None else jnp.where(mask[:, None], x, 0)
    total = jnp.sum(rows, axis=0)
    count = jnp.asarray(x.shape[0], x.dtype) if mask is None else jnp.sum(mask, dtype=x.dtype)
    if axis_name is not None:
        total, count = jax.lax.psum(total, axis_name), jax.lax.psum(count, axis_name)
    return total / jnp.maximum(count, 1), count


def _float(x: Array) -> Array:
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
