"""Augmentation and normalization as part of the step, on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxkd._core import checks
from jaxkd.types import Batch, Distiller, Metrics, TrainState

Transform = Callable[[Batch], Batch]


def preprocess(
    kd: Distiller, *, train_transform: Transform | None = None, eval_transform: Transform | None = None
) -> Distiller:
    """Returns a distiller of raw batches, which it transforms before each step.

    Args:
      kd: a distiller.
      train_transform: pure function of the batch for ``step``, such as a random crop keyed by the batch's ``epoch`` and
        ``index``. ``init`` gets the shapes of its result.
      eval_transform: the same for ``evaluate``, which does not use ``train_transform``.

    >>> import jax, jax.numpy as jnp, optax, jaxkd
    >>> model = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w)
    >>> teacher = jaxkd.teachers.frozen(model, jaxkd.Variables(jnp.ones((2, 3))))
    >>> objective = jaxkd.term(jaxkd.losses.soft_target_kl, "student/logits", "teacher/logits")
    >>> kd = jaxkd.distill(model, teacher, objective, optimizer=optax.sgd(0.1))
    >>> scaled = lambda batch: {**batch, "image": batch["image"] / 255.0}
    >>> kd = preprocess(kd, train_transform=scaled, eval_transform=scaled)
    >>> batch = {"image": jnp.full((4, 2), 255, jnp.uint8)}
    >>> state, metrics = kd.step(kd.init(jax.random.key(0), batch), batch)
    """
    checks.contract("preprocess, kd", kd, Distiller)

    def prepared(batch: Batch) -> Batch:
        checks.batch("preprocess, batch", batch)
        return train_transform(batch) if train_transform else batch

    def init(key: Any, batch: Batch) -> TrainState:
        checks.batch("preprocess, batch", batch)
        return kd.init(key, jax.eval_shape(prepared, dict(batch)))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        return kd.step(state, prepared(batch))

    def evaluated(state: TrainState, batch: Batch) -> Metrics:
        checks.batch("preprocess, batch", batch)
        return kd.evaluate(state, eval_transform(batch) if eval_transform else batch)

    return Distiller(init, step, evaluated)
