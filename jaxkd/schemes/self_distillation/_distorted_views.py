"""Self-distillation over distortions: two views of an image teach each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import optax

from jaxkd import losses, teachers
from jaxkd import metrics as metrics_lib
from jaxkd.distillers import distill
from jaxkd.objectives import combine, select, term
from jaxkd.types import Array, Context, Distiller, Metrics, Model, Schedule
from jaxkd.wrappers import views

_VIEW = "view"


def distorted_views(
    model: Model,
    *,
    optimizer: optax.GradientTransformation,
    feature: str | None,
    weight: float | Array | Schedule = 1.0,
    temperature: float | Schedule = 4.0,
    feature_weight: float | Array | Schedule = 5e-4,
    image: str = "image",
    view_name: str = "view",
    label_path: str = "batch/label",
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] | None = None,
) -> Distiller:
    """``CE(p₁) + CE(p₂) + λ T² (KL(p₁ ‖ p₂) + KL(p₂ ‖ p₁)) + μ ‖mean h₁ − mean h₂‖²``.

    Also known as: DDGSD (data-distortion guided self-distillation).

    Xu & Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019. One network sees two
    distortions of each image. It learns to give both the same prediction, and both batches the same mean of its global
    feature h (the maximum mean discrepancy, `jaxkd.losses.mean_discrepancy`). The first distribution of each KL is a
    fixed target, as between two networks in mutual learning; the gradient of the last term reaches both means. The
    defaults are those of a public reimplementation, which also averages h over its dimensions, halves the sum of the
    two cross-entropies, and normalizes both views as one batch.

    The second view comes with the batch: ``data.two_views(augment)``, in `jaxkd.distillers.preprocess`, makes it. To
    add further terms, write ``distill(wrappers.views(model, {"view": {"image": "view"}}), teachers.none(), ...)`` with
    five terms.

    Args:
      model: model with a tap at its global feature, from an adapter.
      optimizer: any optax transformation.
      feature: name of the model's output h, such as a tap at the pooled feature; None omits the term.
      weight: λ of both divergences, a number or an optax schedule of the step.
      temperature: T, a number or a schedule.
      feature_weight: μ, a number or a schedule.
      image: batch entry that the model reads.
      view_name: batch entry that replaces it for the second view.
      label_path: path of integer classes ``[batch]``.
      metrics: function of a `Context`, or several, reported by ``evaluate``. Without second views, each image is its
        own.
      train_metrics: function of a `Context`, or several, reported by ``step``, beside the terms.

    Returns:
      A `Distiller` whose ``state.student`` are the variables of the model. Its terms are ``ce``, ``ce_view``, ``kl``,
      ``kl_view`` and ``mmd``; ``kl_view`` trains the prediction for the second view.

    Raises:
      ValueError: from ``init``: the batch has no second view or no such labels, or the model no such feature.

    >>> import jax, jax.numpy as jnp
    >>> from jaxkd import adapters
    >>> model = adapters.plain(
    ...     lambda key, x: jnp.ones((2, 3)).at[0, 0].set(2.0), lambda w, x: {"logits": x @ w, "feature": x @ w}
    ... )
    >>> kd = distorted_views(model, optimizer=optax.sgd(0.1), feature="feature")
    >>> batch = {"image": jnp.eye(2), "view": jnp.eye(2)[::-1], "label": jnp.array([1, 1])}
    >>> state, metrics = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> [name for name in metrics if "/" not in name]
    ['ce', 'ce_view', 'kl', 'kl_view', 'loss', 'mmd']
    """
    soft = term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=weight, temperature=temperature)
    terms = {
        "ce": term(losses.cross_entropy, "student/logits", label_path),
        "ce_view": term(losses.cross_entropy, f"student/{_VIEW}/logits", label_path),
        "kl": select(soft, student="", teacher=_VIEW),
        "kl_view": select(soft, student=_VIEW, teacher=""),
    }
    if feature is not None:
        paths = f"student/{feature}", f"student/{_VIEW}/{feature}"
        terms["mmd"] = term(losses.mean_discrepancy, *paths, weight=feature_weight)
    return distill(
        views(model, {_VIEW: {image: view_name}}),
        teachers.none(),
        combine(**terms),
        optimizer=optimizer,
        metrics=metrics,
        train_metrics=train_metrics,
    )
