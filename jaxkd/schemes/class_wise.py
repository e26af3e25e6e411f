"""Class-wise self-knowledge distillation (CS-KD): an example teaches another one of its class."""

from __future__ import annotations

from collections.abc import Callable

import optax

from jaxkd import losses, teachers
from jaxkd.adapters.views import views
from jaxkd.objectives.between import between
from jaxkd.objectives.compose import Schedule, combine, term
from jaxkd.training import metrics as metrics_lib
from jaxkd.training.distill import distill
from jaxkd.types import Array, Context, Distiller, Metrics, Model

__all__ = ["class_wise"]

_PAIR = "pair"


def class_wise(
    model: Model,
    *,
    optimizer: optax.GradientTransformation,
    weight: float | Array | Schedule = 1.0,
    temperature: float | Schedule = 4.0,
    image: str = "image",
    pair: str = "pair",
    labels: str = "batch/label",
    metrics: Callable[[Context], Metrics] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | None = None,
) -> Distiller:
    """CS-KD: ``CE(x) + λ T² KL(p(x'; T) ‖ p(x; T))``, x' another example of the same class.

    Yun et al., "Regularizing Class-wise Predictions via Self-knowledge Distillation", CVPR 2020, section 2, with λ = 1
    and T = 4 of the authors' code. No gradient reaches the prediction for x', the paper's fixed copy of the
    parameters; as in the code, it is made in training mode, and BatchNorm's running statistics move by x and by x'.

    The partners come with the batch: ``data.SameClass(data.Resident(...))`` finds them, and ``data.with_pair(augment)``
    distorts both images. It is ``distill(adapters.views(model, {"pair": {"image": "pair"}}), teachers.none(), ...)`` of
    two terms, to be written out where there are more, such as those of a teacher.

    Args:
      model: from an adapter.
      optimizer: any optax transformation.
      weight: λ, a number or an optax schedule of the step. With 0, a model without BatchNorm trains as it does alone.
      temperature: T, a number or a schedule.
      image: the entry of the batch that the model reads.
      pair: the entry that takes its place for x'.
      labels: path of integer classes ``[batch]``.
      metrics: what ``evaluate`` reports beside the objective's terms. A batch without partners is evaluated as its own.
      train_metrics: what ``step`` reports beside them.

    Returns:
      A `Distiller`. The state's student is the model's own. Its terms are ``ce`` and ``class_wise``.

    Raises:
      ValueError: from ``init``: the batch has no partners, or no such labels.

    >>> import jax, jax.numpy as jnp
    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: jnp.ones((2, 3)).at[0, 0].set(2.0), lambda w, x: x @ w)
    >>> kd = class_wise(model, optimizer=optax.sgd(0.1))
    >>> batch = {"image": jnp.eye(2), "pair": jnp.eye(2)[::-1], "label": jnp.array([1, 1])}
    >>> state, found = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> sorted(found), state.student.params.shape
    (['ce', 'ce/weight', 'class_wise', 'class_wise/weight', 'loss'], (2, 3))
    """
    soft = term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=weight, temperature=temperature)
    objective = combine(
        ce=term(losses.cross_entropy, "student/logits", labels),
        class_wise=between(soft, student="", teacher=_PAIR),
    )
    return distill(
        views(model, {_PAIR: {image: pair}}),
        teachers.none(),
        objective,
        optimizer=optimizer,
        metrics=metrics,
        train_metrics=train_metrics,
    )
