"""Named tuples that connect models, teachers, objectives and distillers.

They are contracts, not base classes. Anything with the right fields and the right call signatures works, so a
user's own code needs no inheritance, no registration and no import beyond this module.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

Array = jax.Array
"""Array of JAX."""

PyTree = Any
"""Any nested structure of containers with arrays as leaves."""

Batch = Mapping[str, Any]
"""A batch: ``image``, ``label``, ``index`` and so on, all the user's.

Three entries have a meaning wherever they exist: in a boolean ``mask``, False excludes an example; ``index`` numbers an
example in its data set, and ``epoch`` the passes over it, for memory banks and transforms. `RESERVED` entries are those
that a step adds for its models; a user's entry of such a name is an error."""

Outputs = Mapping[str, Array]
"""Outputs of one forward pass by name: ``logits`` and every tapped feature."""

Schedule = Callable[[Any], Any]
"""A hyperparameter as a function of the step, such as an optax schedule."""

STUDENT = "student"
"""Label of the student's trained parameters: a key of ``TrainState.opt_state``."""

OBJECTIVE = "objective"
"""Label of the objective's trained parameters: a key of ``TrainState.opt_state``."""

STEP = "step"
"""Entry that models are given beside the batch: the number of updates before this step."""

TAUGHT = "teacher"
"""Entry that models are given beside the batch: the teacher's outputs."""

POSITION = "_position"
"""Entry that models are given beside the batch: the index of each example in the whole batch, in a micro-batch."""

FEATURE = "feature"
"""Entry that the head of an early exit is given beside the batch: its feature."""

RESERVED = (STEP, TAUGHT, POSITION)
"""Names that no batch of the user has."""

UNSEEN = "_unseen"
"""Reserved teacher output, ``bool[batch]``: True for an example whose inputs are not those that the teacher saw.

`jaxkd.teachers.cached` has it. A step replaces the outputs of these examples by NaN and reports their share."""

REPLICAS = "copies"
"""Reserved key of stacked variables: those of `jaxkd.wrappers.replicate`."""

DATA_AXIS = "jaxkd_data"
"""The mapped axis over which a batch is split: ``jax.pmap(kd.step, axis_name=jaxkd.DATA_AXIS)``.

A step traced under this axis sums losses, gradients and metrics over it; a step traced without it is a
single-device step, and one under another axis of pmap or shard_map is an error. No other setting selects between
them."""


class Variables(NamedTuple):
    """Trained ``params`` of a model, and its ``state``: BatchNorm statistics, caches."""

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
    """Source of teacher outputs: frozen, averaged, ensembled, cached or co-trained.

    Attributes:
      init: ``(key, batch, student_variables) -> teacher_state``, a pytree that `TrainState` carries.
      apply: ``(teacher_state, batch, *, key) -> Outputs``.
      update: ``(teacher_state, student_variables, step) -> teacher_state``; the identity for a frozen teacher.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., Outputs]
    update: Callable[..., PyTree]


class Context(NamedTuple):
    """Everything an objective may read, in the order in which a step computes it.

    Attributes:
      student: the student's outputs for this batch.
      teacher: the teacher's outputs for this batch; gradients stop here.
      batch: the batch itself.
      step: the number of updates before this one, an int32 scalar; schedules are functions of it.
      axis_name: the mapped axis that splits the batch, or None if this program sees the whole batch.
      student_params: the student's parameters as they are stored; `jaxkd.wrappers.precision` and ``quantized`` compute
        with others. An objective that reads them sends gradients to them.
      teacher_params: the teacher's parameters, of an ensemble by member; gradients stop here.
    """

    student: Outputs
    teacher: Outputs
    batch: Batch
    step: Any
    axis_name: str | None = None
    student_params: PyTree = {}
    teacher_params: PyTree = {}


class Mean(NamedTuple):
    """Undivided mean, so that micro-batches, devices and hosts merge exactly."""

    sum: Any
    count: Any


@jax.tree_util.register_pytree_node_class
class LabeledMean(Mean):
    """Means ``[n]`` of n runs, with a label for each, by which they are logged."""

    labels: tuple[str, ...] = ()

    def tree_flatten(self) -> tuple[tuple[Any, Any], tuple[str, ...]]:
        """Returns the arrays, and the labels as static data."""
        return (self.sum, self.count), self.labels

    @classmethod
    def tree_unflatten(cls, labels: tuple[str, ...], children: Any) -> LabeledMean:
        """Inverts `tree_flatten`."""
        mean = cls(*children)
        mean.labels = labels
        return mean


@functools.partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=["function", "labels"])
@dataclasses.dataclass(frozen=True, eq=False)
class Derived:
    """Value computed from means after these are merged, from `jaxkd.metrics.derived`.

    A sum of means with different counts, a perplexity and an F1 score are no means themselves.

    Attributes:
      parts: sums and counts ``[..., parts]``, which merge like any mean.
      function: maps the merged parts to the value. It is static data of the pytree.
      labels: of values ``[n]`` of n runs, a label for each, by which they are logged.
    """

    parts: Mean
    function: Callable[[Mean], Any]
    labels: tuple[str, ...] = ()

    @property
    def sum(self) -> Any:
        """The value of these parts; not to be added to another one."""
        return self.function(self.parts)

    @property
    def count(self) -> Any:
        """1 where a part includes anything, and 0 elsewhere."""
        return (self.parts.count != 0).any(axis=-1).astype(self.parts.count.dtype)

    def __iter__(self) -> Iterator[Any]:
        """Iterates over the sum and the count, like a `Mean`."""
        return iter((self.sum, self.count))


Metrics = Mapping[str, Mean | Derived]
"""Named means, and values derived from means; `jaxkd.metrics.compute` divides them."""


class ObjectiveVars(NamedTuple):
    """Variables of an objective: learned ``params`` and ``state`` kept between steps."""

    params: PyTree = {}
    state: PyTree = {}


class ObjectiveOut(NamedTuple):
    """Result of an objective: weighted scalar, new state and unweighted metrics.

    On a mapped axis, ``value`` is this device's share, and the mean of the shares over the axis is the loss of
    the global batch; each metric is this device's ``(sum, count)``.

    Attributes:
      value: the scalar to minimize.
      state: the objective's new state.
      metrics: metrics by name; the objective's own value has the name ``""``.
      terms: the weighted terms by name, which sum to ``value``; empty for an objective of one term.
    """

    value: Array
    state: PyTree
    metrics: Metrics
    terms: Mapping[str, Array] = {}


class Objective(NamedTuple):
    """Objective that may own parameters and state, as an ``(init, apply)`` pair.

    Attributes:
      init: ``(key, context) -> ObjectiveVars``, where the context holds `jax.ShapeDtypeStruct` leaves.
      apply: ``(params, state, context, key) -> ObjectiveOut``.
    """

    init: Callable[..., ObjectiveVars]
    apply: Callable[..., ObjectiveOut]


class TrainState(NamedTuple):
    """State of a training run as one pytree: save it, restore it, shard it, donate it.

    Attributes:
      student: the student's `Variables`.
      teacher: the teacher's state (for `teachers.frozen`, its `Variables`).
      objective: the objective's `ObjectiveVars`.
      opt_state: ``{"student": ..., "objective": ...}``, one optimizer state per label; a wrapper around a distiller
        stores its own state under further keys.
      step: the number of updates made, int32.
      key: the run's base PRNG key; each step folds its number into it, so the key itself never changes.
    """

    student: Variables
    teacher: PyTree
    objective: ObjectiveVars
    opt_state: PyTree
    step: Any
    key: Any


class Distiller(NamedTuple):
    """Distillation as three pure functions, from `jaxkd.distill` or a scheme.

    Attributes:
      init: ``(key, batch) -> TrainState``.
      step: ``(TrainState, batch) -> (TrainState, Metrics)``; jit, pmap, shard_map, scan or vmap it.
      evaluate: ``(TrainState, batch) -> Metrics``; leaves the state unchanged.
    """

    init: Callable[..., TrainState]
    step: Callable[..., tuple[TrainState, Metrics]]
    evaluate: Callable[..., Metrics]
