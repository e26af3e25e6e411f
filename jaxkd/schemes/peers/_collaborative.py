"""Students that learn from one ensemble of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd._core.checks import same_shape
from jaxkd._core.train_state import optimizer_of_objective
from jaxkd.distillers import distill, per_model
from jaxkd.losses import min_logits
from jaxkd.metrics import per_student
from jaxkd.objectives import combine, lookup, select, with_derived_outputs
from jaxkd.schemes.peers._mutual import students_of
from jaxkd.teachers import none
from jaxkd.types import Array, Context, Distiller, Metrics, Model, Objective, ObjectiveVars

_ENSEMBLE = "ensemble"


def collaborative(
    students: Mapping[str, Model] | Model,
    *,
    own: Objective,
    taught: Objective,
    optimizer: optax.GradientTransformation,
    ensemble: Callable[[Array, Array], Array] = min_logits,
    peers: int | None = None,
    label_path: str = "batch/label",
    objective_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = per_student,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """Collaborative learning: ``L_i = own(i) + taught(i ← ensemble)``.

    Also known as: KDCL (knowledge distillation via collaborative learning).

    Guo et al., "Online Knowledge Distillation via Collaborative Learning", CVPR 2020, with the cross-entropy for
    ``own`` and λ T² KL for ``taught``. The ensemble of each example is built with its label: `jaxkd.losses.best_logits`
    (KDCL-Naive), ``combined_logits`` (KDCL-Linear) or ``min_logits`` (KDCL-MinLogit). In the paper, each student sees
    its own distortion of the image: ``wrappers.with_inputs(model, image="second")`` is a student that reads another
    batch entry. No gradient reaches the ensemble.

    Args:
      students: models by name; or one model, which is replicated ``peers`` times and runs as one program.
      own: objective of each student, of ``student/...`` and ``batch/...``.
      taught: objective between a student and the ensemble, which is ``teacher/logits``.
      optimizer: any optax transformation; each student has a state of its own.
      ensemble: function of the students' logits ``[students, batch, classes]`` and labels that returns ``[batch,
        classes]``.
      peers: number of replicas; None if the students have names.
      label_path: path of the integer labels ``[batch]``.
      objective_optimizer: optax transformation of the objectives' parameters, with a state for each; the same by
        default.
      metrics: function of a `Context`, or several, reported by ``evaluate``. The default is the accuracy of the
        students' mean logits and of each student, ``accuracy/NAME``.
      train_metrics: function of a `Context`, or several, reported by ``step``, beside the terms.

    Returns:
      A `Distiller`. ``wrappers.get_member(state.student, NAME)`` are the variables of one student. The terms' metrics
      are ``own/NAME/...`` and ``taught/NAME/...``.

    Raises:
      ValueError: there are no students, or ``peers`` does not fit them; from ``init``: the students' logits differ in
        shape, or an objective reads an entry that does not exist.

    >>> import jaxkd
    >>> from jaxkd import losses
    >>> model = jaxkd.adapters.plain(lambda key, x: jax.random.normal(key, (2, 3)), lambda w, x: x @ w, inputs="x")
    >>> ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    >>> kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=2.0)
    >>> options = {"own": ce, "taught": kl, "optimizer": optax.sgd(0.1)}
    >>> kd = collaborative({"a": model, "b": model}, ensemble=losses.combined_logits, **options)
    >>> batch = {"x": jnp.ones((4, 2)), "label": jnp.array([0, 0, 0, 1])}
    >>> state, metrics = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> [name for name in metrics if not name.endswith("weight")]
    ['loss', 'own/a', 'own/b', 'taught/a', 'taught/b']
    """
    model, names = students_of("collaborative", students, peers)
    if _ENSEMBLE in names:
        raise ValueError(f"collaborative: the name {_ENSEMBLE!r} is reserved for the ensemble, got students {names}.")
    paths = [f"student/{name}/logits" for name in names]

    def init(key: Array, context: Context) -> ObjectiveVars:
        del key
        same_shape("collaborative", {path: lookup(context, path) for path in paths})
        return ObjectiveVars()

    def make(params: Any, state: Any, context: Context, key: Array | None) -> tuple[dict[str, Array], Any]:
        del params, key
        logits = jnp.stack([lookup(context, path) for path in paths])
        made = ensemble(jax.lax.stop_gradient(logits), lookup(context, label_path))
        return {f"{_ENSEMBLE}/logits": jax.lax.stop_gradient(made)}, state

    terms = combine(
        own=combine(**{name: select(own, student=name) for name in names}),
        taught=combine(**{name: select(taught, student=name, teacher=_ENSEMBLE) for name in names}),
    )
    alone = optimizer_of_objective(optimizer, objective_optimizer)
    nested = per_model(per_model(alone))  # one state for each objective of each student
    return distill(
        model,
        none(),
        with_derived_outputs(init, make, terms),
        optimizer=per_model(optimizer),
        objective_optimizer=per_model(nested),
        metrics=metrics,
        train_metrics=train_metrics,
    )
