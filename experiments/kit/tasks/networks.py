"""Trainings of networks: the optimizer, a distiller, and a network that a task trains once, such as a teacher."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import optax

import jaxkd
from experiments.kit import files, training
from jaxkd import weights
from jaxkd.types import Distiller, Model, Objective, Teacher, Variables


def adam(rate: float, steps: int) -> optax.GradientTransformation:
    """Returns Adam with a warm-up of a twentieth of the steps, and a rate that falls to a tenth along a cosine."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, rate, max(steps // 20, 1), max(steps, 2), 0.1 * rate)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=0.01))


def distill(
    student: Model, teacher: Teacher, objective: Objective, rate: float, steps: int, measures: Any
) -> Distiller:
    """Returns a distiller whose evaluations run the student alone."""
    kd = jaxkd.distill(student, teacher, objective, optimizer=adam(rate, steps), metrics=lambda context: {})
    return training.measured(kd, student, metrics=measures)


def trained_once(
    path: pathlib.Path, kd: Distiller, train: Any, splits: Mapping[str, Any], *, steps: int, seed: int = 0
) -> Variables:
    """Returns a student's variables, which the first process that needs them trains and writes to a file."""
    with files.claim(path, wait=True):
        if not path.exists():
            every = max(steps // 20, 1)
            result = training.run(
                kd,
                train,
                splits,
                steps=steps,
                key=jax.random.key(seed),
                eval_every=every,
                directory=path.parent / path.stem,
                log_every=every,
                tensorboard=False,
                progress=path.stem,
            )
            weights.save_safetensors(path, result.state.student)
    like = jax.eval_shape(lambda key: kd.init(key, next(iter(train.batches()))).student, jax.random.key(0))
    return weights.fit_to(like, weights.load_safetensors(path))


def before(steps: int, config: Any) -> int:
    """Returns the steps of a network trained before the students: fewer in a short trial.

    >>> import types
    >>> before(1500, types.SimpleNamespace(steps=700)), before(1500, types.SimpleNamespace(steps=2))
    (1500, 20)
    """
    return min(steps, 10 * int(config.steps))


def parameters(variables: Variables) -> int:
    """Returns the number of parameters."""
    return sum(x.size for x in jax.tree.leaves(variables.params))
