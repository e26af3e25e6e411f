"""Branches of one network that learn from their gated ensemble."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import optax

from jaxkd.distillers import distill
from jaxkd.metrics import per_student
from jaxkd.objectives import gated_ensemble
from jaxkd.teachers import none
from jaxkd.types import Context, Distiller, Metrics, Model, Objective
from jaxkd.wrappers import Exit, with_exits

_MODEL = "model"


def branches(
    student: Model,
    exits: Mapping[str, Exit],
    *,
    feature: str,
    own: Objective,
    taught: Objective,
    hold: bool = True,
    optimizer: optax.GradientTransformation,
    objective_optimizer: optax.GradientTransformation | None = None,
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = per_student,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """Native ensemble: branches of one network learn from their gated ensemble.

    Also known as: ONE (on-the-fly native ensemble).

    ``own(z_e) + Σ_i own(z_i) + Σ_i taught(z_i ← z_e)``, where the ensemble z_e is the sum of the branches' logits z_i,
    weighted by a learned gate. Lan, Zhu & Gong, "Knowledge Distillation by On-the-Fly Native Ensemble", NeurIPS 2018,
    equation 8. `jaxkd.objectives.gated_ensemble` defines the gate and its gradients. The student's own last layers are
    one branch; the exits, usually of the same form, are the others. In the paper the branches share all but the last
    stage, T is 3, and the weight of ``taught`` rises over 80 of 300 epochs (`ramp_up`).

    Args:
      student: model with a tap where the branches begin.
      exits: the other branches by name, each with its tap and its layers.
      feature: name of the tap that the gate reads, usually where the exits begin.
      own: objective of each branch and of the ensemble, of ``student/logits``, usually the cross-entropy.
      taught: objective between a branch and the ensemble, which is its teacher.
      hold: stops the gradient of ``taught`` at the ensemble, as in `jaxkd.objectives.gated_ensemble`.
      optimizer: any optax transformation, for the student and its exits as one network.
      objective_optimizer: optax transformation of the gate and of the objectives' parameters; the same by default.
      metrics: function of a `Context`, or several, reported by ``evaluate``; by default the accuracy, also of each
        exit.
      train_metrics: function of a `Context`, or several, reported by ``step``, beside the terms.

    Returns:
      A `Distiller`. ``wrappers.get_member(state.student, "model")`` are the variables of the student without exits and
      gate. The terms' metrics are ``own/NAME``, ``own/ensemble`` and ``taught/NAME``; the student's name is ``model``.

    Raises:
      ValueError: there are no exits, or a name is reserved; from ``init``: the tap does not exist, or shapes of logits
        differ.

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
    >>> state, metrics = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> [name for name in metrics if not name.endswith("weight")]
    ['loss', 'own/ensemble', 'own/model', 'own/second', 'taught/model', 'taught/second']
    """
    members = {_MODEL: "", **{name: name for name in exits}}
    return distill(
        with_exits(student, exits),
        none(),
        gated_ensemble(members, f"student/{feature}", own=own, taught=taught, hold=hold),
        optimizer=optimizer,
        objective_optimizer=objective_optimizer,
        metrics=metrics,
        train_metrics=train_metrics,
    )
