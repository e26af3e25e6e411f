"""Temporal distillation: a student adapts to a stream on key frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd import metrics as metrics_lib
from jaxkd._core import axes, batches, checks, train_state
from jaxkd._core.model_calls import model_batch
from jaxkd._core.train_state import optimizer_of_objective, params_of, strongly_typed
from jaxkd.distillers import distill, step_keys, teacher_outputs
from jaxkd.metrics import join, report
from jaxkd.schemes.streams._rules import KeyFrameRule
from jaxkd.types import (
    OBJECTIVE,
    STUDENT,
    Array,
    Batch,
    Context,
    Distiller,
    Mean,
    Metrics,
    Model,
    Objective,
    ObjectiveVars,
    Outputs,
    PyTree,
    Teacher,
    TrainState,
    Variables,
)

_SLOT = "stream"
_STREAM = 0x57E4  # folded into the key, so that the rule's keys differ from those of the models


class _Learned(NamedTuple):
    """Values that a key frame changes and a new clip resets."""

    params: PyTree
    objective: ObjectiveVars
    opt_state: PyTree
    rule: PyTree


def key_frames(
    student: Model,
    teacher: Teacher,
    objective: Objective,
    rule: KeyFrameRule,
    *,
    optimizer: optax.GradientTransformation,
    objective_optimizer: optax.GradientTransformation | None = None,
    updates: int = 3,
    threshold: float = 0.3,
    reset: str | None = None,
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """Temporal distillation: a student that adapts to a stream on key frames.

    Also known as: TKD.

    One step is one frame. The student runs on it, ``train_metrics`` measure its outputs, and the rule decides whether
    it is a key frame. Only then is the teacher evaluated, in a branch of the compiled program, and the student is
    updated up to ``updates`` times while the objective's value on this frame is above ``threshold``. Every frame is
    therefore measured before the student adapts to it. Bajestani & Yang, "TKD: Temporal Knowledge Distillation for
    Active Perception", WACV 2020; with frames at intervals, Mullapudi et al., "Online Model Distillation for Efficient
    Video Inference", ICCV 2019. The defaults are those of the TKD authors' later code, with
    ``optimizer=optax.adam(1e-3)``. There all but an extra decoder is frozen: `jaxkd.wrappers.freeze` keeps a part of
    the student as it is.

    The student computes in inference mode in the updates too, since a single frame has no statistics to normalize by;
    its state does not change. Updates are unrolled, as XLA on a CPU runs gradients of convolutions many times slower in
    a loop. The stream's state is in ``opt_state["stream"]``: the rule's state, and the numbers of frames, of
    ``teacher_calls`` and of ``updates``. A run that is resumed in the middle of a stream continues bit for bit.

    Args:
      student: model to adapt, which begins with trained weights: `jaxkd.wrappers.pretrained`.
      teacher: teacher that can be evaluated on a new frame, such as `jaxkd.teachers.frozen`.
      objective: objective of the student's and the teacher's outputs for a key frame. Labels are not needed.
      rule: the rule that chooses key frames, such as `at_intervals`.
      optimizer: any optax transformation, for the student's parameters.
      objective_optimizer: optax transformation for the objective's parameters, as of `jaxkd.distill`.
      updates: largest number of updates on a key frame.
      threshold: value of the objective up to which the student is left as it is.
      reset: entry of the batch that numbers clips, such as ``"clip"``. Where it differs from that of the frame before,
        student, objective, optimizer and rule are set back to those of the stream's first step. By default the
        adaptation continues over clips.
      metrics: function of the `Context`, or several, that return the metrics of ``evaluate``, as of `jaxkd.distill`.
      train_metrics: functions of the `Context` of each frame before its adaptation, without outputs of the teacher.

    Returns:
      A `Distiller` whose batches are one frame, arrays ``[1, ...]``; ``jax.vmap`` of ``init`` and ``step`` adapts one
      student to each of several streams, with the cost of a key frame in each step. ``step`` reports ``key_frames``,
      the share of these; ``updates``, their number for a frame; and, over key frames, ``loss`` and the objective's
      terms before the first update. A masked frame changes nothing. ``evaluate`` is that of `jaxkd.distill`.

    Raises:
      TypeError: an argument is something else, such as a function for a rule.
      ValueError: ``updates`` is not positive; from ``init`` and ``step``: the batch has more than one frame, the entry
        ``reset`` does not exist, or the step is mapped over devices.

    >>> import jaxkd
    >>> linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> teacher = jaxkd.teachers.frozen(linear, Variables(jnp.ones((2, 3)).at[0, 0].set(5.0)))
    >>> kl = jaxkd.term(jaxkd.losses.soft_target_kl, "student/logits", "teacher/logits", temperature=1.0)
    >>> rule = jaxkd.schemes.streams.at_intervals(3)
    >>> kd = key_frames(linear, teacher, kl, rule, optimizer=optax.sgd(0.5), threshold=0.1)
    >>> frame = {"x": jnp.ones((1, 2))}
    >>> state, step = kd.init(jax.random.key(0), frame), jax.jit(kd.step)
    >>> for _ in range(5):
    ...     state, metrics = step(state, frame)
    ...     print({name: float(metrics[name].sum) for name in ("key_frames", "updates")})
    {'key_frames': 1.0, 'updates': 3.0}
    {'key_frames': 0.0, 'updates': 0.0}
    {'key_frames': 0.0, 'updates': 0.0}
    {'key_frames': 1.0, 'updates': 1.0}
    {'key_frames': 0.0, 'updates': 0.0}
    >>> int(state.opt_state["stream"]["teacher_calls"])
    2
    """
    if not isinstance(rule, KeyFrameRule):
        raise TypeError(
            f"key_frames, rule: expected a KeyFrameRule, such as streams.at_intervals(4), got {checks.kind(rule)}."
        )
    if updates < 1:
        raise ValueError(f"key_frames, updates: expected at least 1 update on a key frame, got {updates}.")
    options = {"optimizer": optimizer, "objective_optimizer": objective_optimizer, "metrics": metrics}
    kd = distill(student, teacher, objective, **options)  # checks them; its step is not used
    transformations = {STUDENT: optimizer, OBJECTIVE: optimizer_of_objective(optimizer, objective_optimizer)}

    def init(key: Array, batch: Batch) -> TrainState:
        state = kd.init(key, batch)
        _check_frame(batch, reset)
        shapes = jax.tree.map(train_state.shape_of, dict(batch))
        context = jax.eval_shape(lambda state, batch: seen(state, batch, state.student.params), state, shapes)
        rule_key = jax.random.fold_in(state.key, _STREAM)
        own = {"rule": strongly_typed(rule.init(rule_key, context))}
        own |= {name: jnp.zeros((), jnp.int32) for name in ("frames", "teacher_calls", "updates")}
        if reset is not None:
            own["clip"] = jnp.zeros((), shapes[reset].dtype)
            own["start"] = jax.tree.map(jnp.copy, _Learned(*_trained(state), own["rule"]))
        return train_state.put(state, _SLOT, own, "key_frames")

    def seen(state: TrainState, batch: Batch, params: PyTree) -> Context:
        """Returns what is known of a frame without the teacher."""
        outputs = forward(state, batch, params)
        return Context(outputs, {}, batch, state.step, None, params, params_of(state.teacher))

    def forward(state: TrainState, batch: Batch, params: PyTree, taught: Outputs | None = None) -> Outputs:
        variables = Variables(params, state.student.state)
        outputs, _ = student.apply(variables, model_batch(batch, state.step, taught), key=None, train=False)
        return outputs

    def adapted(state: TrainState, context: Context, learned: _Learned) -> tuple[_Learned, Array, Metrics]:
        """Returns what a key frame changes, the number of updates, and the first metrics."""
        _, teacher_key, objective_key = step_keys(state, None)
        taught = teacher_outputs(teacher, state, context.batch, teacher_key)
        context = context._replace(teacher=taught)
        before = objective.apply(learned.objective.params, learned.objective.state, context, objective_key)

        def update(number: int, learned: _Learned) -> tuple[_Learned, Array]:
            def loss(trained: PyTree) -> tuple[Array, PyTree]:
                outputs = forward(state, context.batch, trained[STUDENT], taught)
                now = context._replace(student=outputs, student_params=trained[STUDENT])
                key = jax.random.fold_in(objective_key, number)
                out = objective.apply(trained[OBJECTIVE], learned.objective.state, now, key)
                return out.value, out.state

            old = {STUDENT: learned.params, OBJECTIVE: learned.objective.params}
            (value, kept), grads = jax.value_and_grad(loss, has_aux=True)(old)
            new, opt_state = {}, {}
            for label, transformation in transformations.items():
                changes, opt_state[label] = transformation.update(grads[label], learned.opt_state[label], old[label])
                new[label] = optax.apply_updates(old[label], changes)
            after = _Learned(new[STUDENT], ObjectiveVars(new[OBJECTIVE], kept), opt_state, learned.rule)
            goes_on = value > threshold
            return _select(goes_on, after, learned), goes_on

        goes_on, count = before.value > threshold, jnp.int32(0)
        for number in range(updates):
            learned, goes_on = jax.lax.cond(
                goes_on, lambda x, i=number: update(i, x), lambda x: (x, jnp.array(False)), learned
            )
            count += goes_on
        one = jnp.float32(1)
        return learned, count, join({"loss": Mean(one * before.value, one)}, _named(before.metrics))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        checks.batch("key_frames, batch", batch)
        inner, own = train_state.take(state, _SLOT, "key_frames")
        _check_frame(batch, reset)
        mask = batches.example_mask(batch)
        included = jnp.array(True) if mask is None else mask[0]
        learned = _Learned(*_trained(inner), own["rule"])
        if reset is not None:
            clip = jnp.asarray(batch[reset]).reshape(())
            # The weights may have been set after `init`, so that the first step decides with which the stream begins.
            begins = own["frames"] == 0
            start = _select(begins, learned, own["start"])
            learned = _select(included & ~begins & (clip != own["clip"]), start, learned)
            own = {**own, "start": start, "clip": jnp.where(included, clip, own["clip"])}
        context = jax.lax.stop_gradient(seen(inner, batch, learned.params))
        key = jax.random.fold_in(jax.random.fold_in(inner.key, _STREAM), inner.step)
        asked, rule_state = rule.ask(learned.rule, context, key)
        asked = included & jnp.asarray(asked, bool).reshape(())
        learned = learned._replace(rule=_select(included, rule_state, learned.rule))
        shapes = jax.eval_shape(lambda learned: adapted(inner, context, learned), learned)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes[1:])
        learned, count, reported = jax.lax.cond(
            asked, lambda x: adapted(inner, context, x), lambda x: (x, *nothing), learned
        )
        counted = {"frames": included, "teacher_calls": asked, "updates": count}
        own = {**own, **{name: own[name] + x for name, x in counted.items()}, "rule": learned.rule}
        variables = Variables(learned.params, inner.student.state)
        new = TrainState(
            variables,
            teacher.update(inner.teacher, variables, inner.step + 1),
            learned.objective,
            {**inner.opt_state, **learned.opt_state},
            inner.step + 1,
            inner.key,
        )
        weight = included.astype(jnp.float32)
        shares = {"key_frames": Mean(1.0 * asked, weight), "updates": Mean(1.0 * count, weight)}
        return train_state.put(new, _SLOT, own, "key_frames"), join(
            reported, shares, report(train_metrics or (), context)
        )

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        return kd.evaluate(train_state.take(state, _SLOT, "key_frames")[0], batch)

    return Distiller(init, step, evaluate)


def _trained(state: TrainState) -> tuple[PyTree, ObjectiveVars, PyTree]:
    labels = {label: state.opt_state[label] for label in (STUDENT, OBJECTIVE)}
    return state.student.params, state.objective, labels


def _named(found: Metrics) -> Metrics:
    """Names the metric of a single term, as `jaxkd.distill` does."""
    return {name or OBJECTIVE: mean for name, mean in found.items()}


def _select(chosen: Array, new: PyTree, old: PyTree) -> Any:
    return jax.tree.map(lambda x, y: jax.lax.select(chosen, jnp.asarray(x, y.dtype), y), new, old)


def _check_frame(batch: Batch, reset: str | None) -> None:
    """Raises unless a batch is one frame of one stream."""
    if axes.mapped_axis() is not None:
        raise ValueError(
            "key_frames: expected one device, as a student adapts to one frame after the other. Compile the step with "
            "jax.jit or jaxkd.parallel.jit(kd)."
        )
    size = batches.batch_size(batch)
    if size != 1:
        raise ValueError(
            f"key_frames, batch: expected one frame, arrays [1, ...], got {size} examples. Each stream has a student "
            "of its own: map several with jax.vmap(kd.step), over states and batches [streams, 1, ...]."
        )
    if reset is not None:
        checks.known(reset, checks.shapes(batch), "key_frames, reset, batch entry")
        if batch[reset].shape != (1,):
            raise ValueError(f"key_frames, reset: expected one number [1], got {checks.shape(batch[reset])}.")
