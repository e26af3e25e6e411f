"""Data-distortion guided self-distillation (DDGSD): two distortions of an image teach each other."""

from __future__ import annotations

from collections.abc import Callable

import optax

from jaxkd import losses, teachers
from jaxkd.adapters.views import views
from jaxkd.losses.relations import mean_discrepancy
from jaxkd.objectives.between import between
from jaxkd.objectives.compose import Schedule, combine, term
from jaxkd.training import metrics as metrics_lib
from jaxkd.training.distill import distill
from jaxkd.types import Array, Context, Distiller, Metrics, Model

__all__ = ["two_views"]

_VIEW = "view"


def two_views(
    model: Model,
    *,
    optimizer: optax.GradientTransformation,
    feature: str | None,
    weight: float | Array | Schedule = 1.0,
    temperature: float | Schedule = 4.0,
    feature_weight: float | Array | Schedule = 5e-4,
    image: str = "image",
    view: str = "view",
    labels: str = "batch/label",
    metrics: Callable[[Context], Metrics] = metrics_lib.classification,
    train_metrics: Callable[[Context], Metrics] | None = None,
) -> Distiller:
    """DDGSD: ``CE(p₁) + CE(p₂) + λ T² (KL(p₁ ‖ p₂) + KL(p₂ ‖ p₁)) + μ ‖mean h₁ − mean h₂‖²``.

    Xu & Liu, "Data-Distortion Guided Self-Distillation for Deep Neural Networks", AAAI 2019: one network sees two
    distorted versions of each image, and learns to predict the same for both and to give both batches one mean of its
    global features h, the maximum mean discrepancy (`jaxkd.losses.mean_discrepancy`). The first distribution of each
    KL is a target, held fixed, as between two networks that learn from each other; the features' means both move. The
    defaults are those of a public reimplementation, which also takes the mean of the features over their dimensions
    and half of the mean of the two cross-entropies, and normalises both versions as one batch.

    The second version comes with the batch: ``data.two_views(augment)``, in `jaxkd.training.preprocess`, makes it. The
    scheme is ``distill(adapters.views(model, {"view": {"image": "view"}}), teachers.none(), ...)`` of five terms, to
    be written out where there are more.

    Args:
      model: from an adapter, with a tap at its global feature.
      optimizer: any optax transformation.
      feature: the model's output that is h, such as a tap at the pooled feature; None leaves the term out.
      weight: λ, of both divergences: a number, or an optax schedule of the step.
      temperature: T, a number or a schedule.
      feature_weight: μ, a number or a schedule.
      image: the entry of the batch that the model reads.
      view: the entry that takes its place for the second version.
      labels: path of integer classes ``[batch]``.
      metrics: what ``evaluate`` reports beside the objective's terms. A batch of single images is its own second
        version there.
      train_metrics: what ``step`` reports beside them.

    Returns:
      A `Distiller`. The state's student is the model's own. Its terms are ``ce``, ``ce_view``, ``kl``, ``kl_view`` and
      ``mmd``; ``kl_view`` is that by which the second version learns.

    Raises:
      ValueError: from ``init``: the batch has no second version or no such labels, or the model no such feature.

    >>> import jax, jax.numpy as jnp
    >>> from jaxkd import adapters
    >>> model = adapters.plain(
    ...     lambda key, x: jnp.ones((2, 3)).at[0, 0].set(2.0), lambda w, x: {"logits": x @ w, "feature": x @ w}
    ... )
    >>> kd = two_views(model, optimizer=optax.sgd(0.1), feature="feature")
    >>> batch = {"image": jnp.eye(2), "view": jnp.eye(2)[::-1], "label": jnp.array([1, 1])}
    >>> state, found = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> [name for name in found if "/" not in name]
    ['ce', 'ce_view', 'kl', 'kl_view', 'loss', 'mmd']
    """
    soft = term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=weight, temperature=temperature)
    terms = {
        "ce": term(losses.cross_entropy, "student/logits", labels),
        "ce_view": term(losses.cross_entropy, f"student/{_VIEW}/logits", labels),
        "kl": between(soft, student="", teacher=_VIEW),
        "kl_view": between(soft, student=_VIEW, teacher=""),
    }
    if feature is not None:
        paths = f"student/{feature}", f"student/{_VIEW}/{feature}"
        terms["mmd"] = term(mean_discrepancy, *paths, weight=feature_weight)
    return distill(
        views(model, {_VIEW: {image: view}}),
        teachers.none(),
        combine(**terms),
        optimizer=optimizer,
        metrics=metrics,
        train_metrics=train_metrics,
    )
