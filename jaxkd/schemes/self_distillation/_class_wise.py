"""Self-distillation within a class: one example teaches another one of its class."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import optax

from jaxkd import losses, teachers
from jaxkd import metrics as metrics_lib
from jaxkd.distillers import distill
from jaxkd.objectives import combine, select, term
from jaxkd.types import Array, Context, Distiller, Metrics, Model, Schedule
from jaxkd.wrappers import views

_PAIR = "pair"


def class_wise(
    model: Model,
    *,
    optimizer: optax.GradientTransformation,
    weight: float | Array | Schedule = 1.0,
    temperature: float | Schedule = 4.0,
    image: str = "image",
    pair: str = "pair",
    label_path: str = "batch/label",
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """``CE(x) + λ T² KL(p(x'; T) ‖ p(x; T))``, with x' another example of the class.

    Also known as: CS-KD (class-wise self-knowledge distillation).

    Yun et al., "Regularizing Class-wise Predictions via Self-knowledge Distillation", CVPR 2020, section 2, with λ = 1
    and T = 4 of the authors' code. No gradient reaches the prediction for x', the paper's fixed copy of the parameters.
    As in the code, x' is evaluated in training mode, and BatchNorm's running statistics are updated by x and by x'.

    The partners x' come with the batch: ``data.SameClass(data.Resident(...))`` finds them, and
    ``data.with_pair(augment)`` distorts both images. To add further terms, such as those of a teacher, write
    ``distill(wrappers.views(model, {"pair": {"image": "pair"}}), teachers.none(), ...)`` with two terms.

    Args:
      model: model of the student, from an adapter.
      optimizer: any optax transformation.
      weight: λ, a number or an optax schedule of the step.
      temperature: T, a number or a schedule.
      image: batch entry that the model reads.
      pair: batch entry that replaces it for x'.
      label_path: path of integer classes ``[batch]``.
      metrics: function of a `Context`, or several, reported by ``evaluate``. Without partners, each example is its own.
      train_metrics: function of a `Context`, or several, reported by ``step``, beside the terms.

    Returns:
      A `Distiller` whose ``state.student`` are the variables of the model. Its terms are ``ce`` and ``class_wise``.

    Raises:
      ValueError: from ``init``: the batch has no partners or no such labels.

    >>> import jax, jax.numpy as jnp
    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: jnp.ones((2, 3)).at[0, 0].set(2.0), lambda w, x: x @ w)
    >>> kd = class_wise(model, optimizer=optax.sgd(0.1))
    >>> batch = {"image": jnp.eye(2), "pair": jnp.eye(2)[::-1], "label": jnp.array([1, 1])}
    >>> state, metrics = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> sorted(metrics), state.student.params.shape
    (['ce', 'ce/weight', 'class_wise', 'class_wise/weight', 'loss'], (2, 3))
    """
    soft = term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=weight, temperature=temperature)
    objective = combine(
        ce=term(losses.cross_entropy, "student/logits", label_path), class_wise=select(soft, student="", teacher=_PAIR)
    )
    return distill(
        views(model, {_PAIR: {image: pair}}),
        teachers.none(),
        objective,
        optimizer=optimizer,
        metrics=metrics,
        train_metrics=train_metrics,
    )
