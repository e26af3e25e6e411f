"""jaxkd: `fit` on a resident set, and a loop of compiled steps."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxkd
from benchmarks.peers import setting
from benchmarks.peers.setting import CLASSES, KD_WEIGHT, STUDENT, TEACHER, TEMPERATURE, Setting, Side
from jaxkd import losses, metrics, models


def _distiller(of: Setting) -> tuple[jaxkd.Distiller, Any]:
    objective = jaxkd.combine(
        ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=1 - KD_WEIGHT),
        kd=jaxkd.term(
            losses.soft_target_kl, "student/logits", "teacher/logits", weight=KD_WEIGHT, temperature=TEMPERATURE
        ),
    )
    teacher = jaxkd.adapters.linen(models.MLP(TEACHER, CLASSES))
    kd = jaxkd.distill(
        jaxkd.adapters.linen(models.MLP(STUDENT, CLASSES)),
        jaxkd.teachers.frozen(teacher, {"params": of.teacher}),
        objective,
        optimizer=optax.sgd(setting.LEARNING_RATE, momentum=setting.MOMENTUM),
    )
    state = kd.init(jax.random.key(0), of.resident.gather(of.resident.arrays, 0))
    return kd, state._replace(student=state.student._replace(params=jax.tree.map(jnp.asarray, of.student)))


def fit(of: Setting, steps: int) -> Side:
    """Builds the side of `jaxkd.training.fit` on a `jaxkd.data.Resident` set."""
    kd, state = _distiller(of)

    def first() -> list[float]:
        options: Any = {"steps": len(of.order), "log_every": 1, "progress": False}
        return [row["train/loss"] for row in jaxkd.training.fit(kd, of.resident, state=state, **options).history]

    return Side(
        first, lambda: jaxkd.training.fit(kd, of.resident, steps=steps, state=state, progress=False).state, steps
    )


def loop(of: Setting, steps: int) -> Side:
    """Builds the side of a loop over `jaxkd.parallel.jit`, with batches on the device."""
    kd, start = _distiller(of)
    placed = jaxkd.parallel.jit(kd)
    batches = [jax.device_put({"image": image, "label": label}) for image, label in of.batches()]

    def first() -> list[float]:
        state, found = jax.tree.map(jnp.copy, start), []
        for batch in batches:
            state, reported = placed(state, batch)
            found.append(metrics.compute(reported)["loss"])
        return found

    states = [jax.tree.map(jnp.copy, start)]

    def many() -> Any:
        for number in range(steps):
            states[0], reported = placed(states[0], batches[number % len(batches)])
        return reported

    return Side(first, many, steps)
