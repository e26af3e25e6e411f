"""Progressive self-distillation: labels mixed with past predictions."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core import batches, checks
from jaxkd._core.axes import gather
from jaxkd._core.batches import lookup
from jaxkd.objectives._checks import rows_within, share, sizes
from jaxkd.objectives._compose import at_step, reduce_values
from jaxkd.objectives._contrastive._rows import row_index, write_index
from jaxkd.objectives._tokens import mask_feature
from jaxkd.types import Array, Context, Mean, Objective, ObjectiveOut, ObjectiveVars, Schedule

_BITS: dict[Any, Any] = {jnp.dtype(jnp.float32): jnp.int32, jnp.dtype(jnp.bfloat16): jnp.int16}


def progressive_self_kd(
    examples: int,
    *,
    alpha: float | Array | Schedule = 0.8,
    steps: int | None = None,
    student: str = "student/logits",
    label_path: str = "batch/label",
    index_path: str = "batch/index",
    weight: float | Array | Schedule = 1.0,
    dtype: Any = jnp.float32,
) -> Objective:
    """Cross-entropy with labels mixed with the student's last predictions.

    Also known as: PS-KD (progressive self-knowledge distillation).

    The target is ``(1 − α_t) onehot(y) + α_t p_past`` with ``α_t = α_T t / T``, where p_past is the student's
    prediction at its last visit of the example. Kim et al., "Self-Knowledge Distillation with Progressive Refinement of
    Targets", ICCV 2021, section 3, with the published α_T of 0.8. At its first visit, the target is the label. As in
    the authors' code, the predictions are those of training: of the augmented image, in training mode, before the
    update. Their α changes every epoch: ``lambda step: 0.8 * (step // steps_per_epoch + 1) / epochs``. This objective
    replaces the cross-entropy term.

    The predictions are state, a table ``[examples, classes]``. Their bits are stored as integers, since devices average
    floating-point state and a mean of equal numbers may round; `past_probabilities` reads the table.
    ``jaxkd.parallel.shard(kd, mesh, rules=...)`` splits it over the devices.

    Args:
      examples: number of training examples. An index out of range yields NaN, as an invalid class label does.
      alpha: weight of the past predictions, a number from 0 (the cross-entropy) to 1, or a schedule of the step.
      steps: T, the number of steps over which a number `alpha` grows linearly from 0. None keeps it constant.
      student: path of the logits ``[batch, classes]``.
      label_path: path of integer classes ``[batch]``.
      index_path: path of the examples' positions in the training set, integers ``[batch]``.
      weight: a number, or an optax schedule of the step.
      dtype: dtype of the stored probabilities: float32, or bfloat16 for half of the memory.

    Returns:
      An `Objective` with the predictions as state. It also reports ``alpha``. An evaluation (without a key) is the
      cross-entropy with the labels, since other examples have no past predictions, and leaves the state unchanged.

    Raises:
      ValueError: a number or the dtype is not supported; and from ``init``: a path does not exist, or its value is not
        ``[batch, classes]`` or integers ``[batch]``.

    >>> objective = progressive_self_kd(5, alpha=0.5)
    >>> batch = {"label": jnp.array([0]), "index": jnp.array([3])}
    >>> context = Context({"logits": jnp.array([[0.0, 0.0]])}, {}, batch, 0)
    >>> state = objective.init(jax.random.key(0), context).state
    >>> first = objective.apply({}, state, context, jax.random.key(0))
    >>> past_probabilities(first.state)[3], past_probabilities(first.state)[4]
    (Array([0.5, 0.5], dtype=float32), Array([0., 0.], dtype=float32))
    >>> sure = context._replace(student={"logits": jnp.array([[8.0, 0.0]])})
    >>> objective.apply({}, first.state, sure, jax.random.key(0)).value.round(2)  # a quarter of the target lies at 1
    Array(2., dtype=float32)
    """
    sizes("progressive_self_kd", examples=examples)
    if steps is not None:
        sizes("progressive_self_kd", steps=steps)
    if callable(alpha) and steps is not None:
        raise ValueError(
            "progressive_self_kd, steps: expected None beside a schedule of alpha, which already depends on the step."
        )
    if not callable(alpha):
        share("progressive_self_kd", alpha=alpha)
    stored = jnp.dtype(dtype)
    if stored not in _BITS:
        raise ValueError(f"progressive_self_kd, dtype: expected float32 or bfloat16, got {stored}.")

    def alpha_at(step: Any) -> Any:
        own = at_step(alpha, step)
        return own if steps is None else own * jnp.minimum(step / steps, 1)

    def inputs(context: Context, train: bool) -> tuple[Array, Array, Array | None]:
        logits, label = lookup(context, student), lookup(context, label_path)
        if len(logits.shape) != 2 or not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ValueError(
                f"progressive_self_kd, {student}: expected logits [batch, classes], got {checks.shape(logits)}."
            )
        place = lookup(context, index_path) if train else None
        for path, x in ((label_path, label), (index_path, place)):
            if x is not None and (not jnp.issubdtype(x.dtype, jnp.integer) or x.shape != logits.shape[:1]):
                raise ValueError(
                    f"progressive_self_kd, {path}: expected integers [{logits.shape[0]}], got {checks.shape(x)}."
                )
        if place is not None:
            rows_within("progressive_self_kd", context, place, examples, "examples")
        return logits, label, place

    def init(key: Array, context: Context) -> ObjectiveVars:
        del key
        classes = inputs(context, train=True)[0].shape[1]
        return ObjectiveVars({}, {"past": jnp.zeros((examples, classes), _BITS[stored])})

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del params
        logits, label, place = inputs(context, train=key is not None)
        mask = batches.example_mask(context.batch)
        step_alpha = jnp.asarray(alpha_at(context.step), jnp.float32)
        if place is None:
            return _reported(losses.cross_entropy(logits, label, where=mask), mask, weight, context, state, step_alpha)
        logits = mask_feature(context, jnp.asarray(logits))
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        where = jnp.ones(label.shape, bool) if mask is None else mask
        place = row_index(place, where, examples)
        classes = logits.shape[1]
        valid = (label >= 0) & (label < classes) & (place < examples)
        hard = jax.nn.one_hot(label, classes, dtype=logits.dtype)
        past = _floats(state["past"].at[place].get(mode="fill", fill_value=0), stored).astype(logits.dtype)
        # A row of zeros, which no softmax yields, marks an example that was not visited yet.
        past = jnp.where(jnp.sum(past, axis=1, keepdims=True) > 0, past, hard)
        mixing = step_alpha.astype(logits.dtype)
        values = losses.soft_cross_entropy(logits, (1 - mixing) * hard + mixing * past, where=mask)
        # Label and index values are unknown at trace time, so an invalid one yields NaN instead of an error.
        values = jnp.where(valid | ~where, values, jnp.nan)
        new = update(state["past"], jax.nn.softmax(jax.lax.stop_gradient(logits)), place, where, context)
        return _reported(values, mask, weight, context, {**state, "past": new}, step_alpha)

    def update(table: Array, rows: Array, place: Array, where: Array, context: Context) -> Array:
        rows, place, where = (gather(x, context.axis_name) for x in (_bits(rows, stored), place, where))
        return table.at[write_index(place, where, examples)].set(rows, mode="drop")

    return Objective(init, apply)


def past_probabilities(objective_state: Any) -> Array:
    """Returns the stored predictions of `progressive_self_kd` ``[examples, classes]``.

    Args:
      objective_state: the objective's state, such as ``train_state.objective.state["ps_kd"]`` for the name ``ps_kd`` in
        `jaxkd.combine`.

    Returns:
      Probabilities in the dtype in which they are stored; zeros for examples that were not visited yet.

    >>> past_probabilities({"past": jnp.zeros((4, 3), jnp.int16)}).dtype.name
    'bfloat16'
    """
    table = objective_state["past"]
    return _floats(table, next(floating for floating, bits in _BITS.items() if table.dtype == bits))


def _reported(
    values: Array, mask: Array | None, weight: Any, context: Context, state: Any, alpha: Array
) -> ObjectiveOut:
    out = reduce_values(values, mask, weight, context, state)
    return out._replace(metrics={**out.metrics, "alpha": Mean(alpha, jnp.ones((), jnp.float32))})


def _bits(x: Array, stored: Any) -> Array:
    return jax.lax.bitcast_convert_type(x.astype(stored), _BITS[stored])


def _floats(bits: Array, stored: Any) -> Array:
    return jax.lax.bitcast_convert_type(bits, stored)
