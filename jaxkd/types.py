"""The named tuples every layer speaks: models, teachers, objectives, distillers and what flows between them.

They are contracts, not base classes. Anything with the right fields and the right call signatures works, so a
user's own code needs no inheritance, no registration and no import beyond this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any

Batch = Mapping[str, Any]
"""A batch: ``image``, ``label``, ``index`` and so on; an optional boolean ``mask`` marks the examples that count."""

Outputs = Mapping[str, Array]
"""What one forward pass returns: ``logits`` and every tapped feature, by name."""

DATA_AXIS = "jaxkd_data"
"""The mapped axis over which a batch is split: ``jax.pmap(kd.step, axis_name=jaxkd.DATA_AXIS)``.

A step traced under this axis sums losses, gradients and metrics over it; a step traced without it is a
single-device step. Nothing else switches between the two."""


class Variables(NamedTuple):
    """What a model needs to run: trained ``params`` and everything else it carries, ``state`` (BatchNorm, caches)."""

    params: PyTree
    state: PyTree = {}


class Model(NamedTuple):
    """Any model of any library, as two pure functions.

    Attributes:
      init: ``(key, batch) -> Variables``.
      apply: ``(variables, batch, *, key, train) -> (Outputs, new_state)``. ``key`` may be None when
        ``train`` is False; ``new_state`` has the structure of ``variables.state``.
    """

    init: Callable[..., Variables]
    apply: Callable[..., tuple[Outputs, PyTree]]


class Teacher(NamedTuple):
    """Where teacher outputs come from: frozen, averaged, ensembled, cached or co-trained, in one shape.

    Attributes:
      init: ``(key, batch, student_variables) -> teacher_state``, a pytree that lives in `TrainState`.
      apply: ``(teacher_state, batch, *, key) -> Outputs``.
      update: ``(teacher_state, student_variables, step) -> teacher_state``; the identity for a frozen teacher.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., Outputs]
    update: Callable[..., PyTree]


class Context(NamedTuple):
    """Everything an objective may read, in the order in which it comes to exist.

    Attributes:
      student: outputs of the student for this batch.
      teacher: outputs of the teacher for this batch (no gradient reaches them).
      batch: the batch itself.
      step: the number of updates made so far, an int32 scalar; schedules are functions of it.
      axis_name: the mapped axis that splits the batch, or None when the whole batch is here.
    """

    student: Outputs
    teacher: Outputs
    batch: Batch
    step: Any
    axis_name: str | None = None


class Mean(NamedTuple):
    """A mean that is not divided yet, so that micro-batches, devices and hosts can be merged exactly."""

    sum: Any
    count: Any


Metrics = Mapping[str, Mean]
"""Named means; `jaxkd.training.metrics.compute` divides them."""


class LossVars(NamedTuple):
    """What an objective owns: ``params`` are learned with the student, ``state`` is remembered between steps."""

    params: PyTree = {}
    state: PyTree = {}


class LossOut(NamedTuple):
    """What an objective returns: the weighted scalar to minimise, its new state and its unweighted metrics.

    On a mapped axis, ``value`` is this device's share, and the mean of the shares over the axis is the loss of
    the global batch; each metric is this device's ``(sum, count)``.

    Attributes:
      value: what is minimised.
      state: what is remembered.
      metrics: by name; the objective's own value is named ``""``.
      terms: the weighted values whose sum ``value`` is, by name; empty where it is a single one.
    """

    value: Array
    state: PyTree
    metrics: Metrics
    terms: Mapping[str, Array] = {}


class Objective(NamedTuple):
    """A loss that may own parameters and state, in optax's ``(init, update)`` shape.

    Attributes:
      init: ``(key, context) -> LossVars``, where the context holds `jax.ShapeDtypeStruct` leaves.
      apply: ``(params, state, context, key) -> LossOut``.
    """

    init: Callable[..., LossVars]
    apply: Callable[..., LossOut]


class TrainState(NamedTuple):
    """Everything a training run is, as one pytree: save it, restore it, shard it, donate it.

    Attributes:
      student: the student's `Variables`.
      teacher: the teacher's state (for `teachers.frozen`, its `Variables`).
      loss: the objective's `LossVars`.
      opt_state: ``{"student": ..., "objective": ...}``, one optimizer state for each label; what wraps a distiller
        keeps its own beside them.
      step: the number of updates made, int32.
      key: the run's base PRNG key; each step folds its number into it, so it never changes.
    """

    student: Variables
    teacher: PyTree
    loss: LossVars
    opt_state: PyTree
    step: Any
    key: Any


class Distiller(NamedTuple):
    """What `jaxkd.distill` and every scheme return: three pure functions.

    Attributes:
      init: ``(key, batch) -> TrainState``.
      step: ``(TrainState, batch) -> (TrainState, Metrics)``; jit, pmap, shard_map, scan or vmap it.
      evaluate: ``(TrainState, batch) -> Metrics``; changes nothing.
    """

    init: Callable[..., TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]
    evaluate: Callable[..., Metrics]
