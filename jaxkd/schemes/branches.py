"""Branches of one network that learn from their gated ensemble (ONE)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import optax

from jaxkd.adapters.exits import Exit, with_exits
from jaxkd.objectives.gated import gated
from jaxkd.teachers.none import none
from jaxkd.training.distill import distill
from jaxkd.training.metrics import per_student
from jaxkd.types import Context, Distiller, Metrics, Model, Objective

__all__ = ["branches"]

_MODEL = "model"


def branches(
    student: Model,
    exits: Mapping[str, Exit],
    *,
    feature: str,
    own: Objective,
    taught: Objective,
    optimizer: optax.GradientTransformation,
    loss_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] = per_student,
    train_metrics: Callable[[Context], Metrics] | None = None,
) -> Distiller:
    """A network that learns from itself and further branches: ``own(z_e) + Σ_i own(z_i) + Σ_i taught(z_i ← z_e)``.

    The ensemble z_e is the branches' logits, weighted by a learned gate. Lan, Zhu & Gong, "Knowledge Distillation by
    On-the-Fly Native Ensemble", NeurIPS 2018 (ONE), equation 8, by `jaxkd.objectives.gated`: there stands what the gate
    is and what learns from what. The student's own last layers are one branch, the exits the others, usually copies of
    these layers at one tap. In the paper the branches share all but the last stage; T is 3, and the weight of what is
    taught rises over 80 epochs of 300 (`ramp_up`).

    Args:
      student: the model, with the tap at which it branches.
      exits: the further branches by name: where they begin, and their layers.
      feature: the tap that the gate reads, usually where the exits begin.
      own: what each branch and the ensemble minimise by themselves, on ``student/logits``, usually the cross-entropy.
      taught: what a branch minimises beside the ensemble, which has the teacher's place.
      optimizer: for the student and its exits, as one network.
      loss_optimizer: for the gate and what else the objectives learn; the same by default.
      metrics: what ``evaluate`` reports: by default the accuracy of the student and that of each exit,
        ``accuracy/NAME``.
      train_metrics: what ``step`` reports beside the terms.

    Returns:
      A `Distiller`. ``adapters.member(state.student, "model")`` is the student, as it is used afterwards: without exits
      and gate. The terms' metrics are ``own/NAME``, ``own/ensemble`` and ``taught/NAME``; the student is ``model``.

    Raises:
      ValueError: there are no exits, or a name cannot be one; and from ``init``: there is no such tap, or the logits
        differ in shape.

    >>> import jax, jax.numpy as jnp
    >>> import jaxkd
    >>> from jaxkd import losses
    >>> shared = lambda w, x: {"logits": x @ w, "hidden": x}
    >>> model = jaxkd.adapters.plain(lambda key, x: jnp.ones((2, 3)), shared, inputs="x")
    >>> head = jaxkd.adapters.plain(lambda key, f: jnp.ones((2, 3)), lambda w, f: f @ w, inputs="feature")
    >>> ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    >>> kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=3.0)
    >>> options = {"feature": "hidden", "own": ce, "taught": kl, "optimizer": optax.sgd(0.1)}
    >>> kd = branches(model, {"second": Exit("hidden", head)}, **options)
    >>> batch = {"x": jnp.ones((4, 2)), "label": jnp.array([0, 0, 0, 1])}
    >>> state, found = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> [name for name in found if not name.endswith("weight")]
    ['loss', 'own/ensemble', 'own/model', 'own/second', 'taught/model', 'taught/second']
    """
    members = {_MODEL: "", **{name: name for name in exits}}
    return distill(
        with_exits(student, exits),
        none(),
        gated(members, f"student/{feature}", own=own, taught=taught),
        optimizer=optimizer,
        loss_optimizer=loss_optimizer,
        metrics=metrics,
        train_metrics=train_metrics,
    )
