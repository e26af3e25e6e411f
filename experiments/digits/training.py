"""Teachers and students: all seeds of a method train as one program, in the loop that trains any other model."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import optax

import jaxkd
from experiments.digits import setting
from experiments.digits.config import Config
from experiments.digits.methods import objective, supervised
from experiments.digits.models import LAYERS, Net
from jaxkd import adapters, distillers, teachers, training
from jaxkd.types import PyTree

TAPS = dict(zip(("first", "second"), LAYERS, strict=True))
OnEval = Callable[[int, Any, Any], None]


def teacher_model(config: Config) -> jaxkd.Model:
    """The teacher's network and its taps."""
    return adapters.linen(Net(config.teacher_widths), taps=TAPS)


def student_model(config: Config) -> jaxkd.Model:
    """The student's network and its taps."""
    return adapters.linen(Net(config.student_widths), taps=TAPS)


def over_seeds(build: Callable[[PyTree], jaxkd.Distiller], own: PyTree, seeds: list[int]) -> jaxkd.Distiller:
    """Several seeds as one distiller, whose state and metrics have a leading axis of seeds.

    Args:
      build: makes a seed's distiller from what only this seed has, such as the weights of its teacher.
      own: that, stacked over the seeds.
      seeds: their numbers: a seed's initial weights depend on its own number and on no other.

    Returns:
      A distiller for batches ``[seeds, batch, ...]`` to train on and batches ``[batch, ...]`` to evaluate on.
    """
    # Only `init` reads what a seed owns; from then on it is part of the state.
    one = build(own)

    def init(key: Any, batch: Any) -> Any:
        keys = jax.vmap(lambda seed: jax.random.fold_in(key, seed))(jax.numpy.asarray(seeds))
        return jax.vmap(lambda key, batch, own: build(own).init(key, batch))(keys, batch, own)

    return jaxkd.Distiller(init, jax.vmap(one.step), jax.vmap(one.evaluate, in_axes=(0, None)))


def normalized(kd: jaxkd.Distiller) -> jaxkd.Distiller:
    """A distiller for images as they are stored."""
    return distillers.preprocess(kd, train_transform=setting.normalize, eval_transform=setting.normalize)


def adam(rate: float, steps: int) -> optax.GradientTransformation:
    """Adam with a rate that falls to 0."""
    return optax.adam(optax.cosine_decay_schedule(rate, steps))


def run(
    kd: jaxkd.Distiller,
    train: setting.PerSeed,
    name: str,
    config: Config,
    steps: int,
    directory: pathlib.Path | None,
    on_eval: OnEval | None,
) -> training.FitResult:
    """Trains all seeds, and goes on where an interrupted run was."""
    epoch = train.steps_per_epoch
    return training.fit(
        kd,
        train,
        steps=steps,
        key=jax.random.key(0),
        eval_data={"validation": setting.held_out("validation")},
        eval_every=config.eval_every * epoch,
        log_every=config.eval_every * epoch,
        checkpoint_every=None if directory is None else config.checkpoint_every * epoch,
        on_eval=on_eval,
        directory=directory,
        keep=1,
        config={"run": name, **config.identity()},
        tensorboard=False,
        progress=False,
    )


def train_teachers(config: Config, directory: pathlib.Path | None, on_eval: OnEval | None) -> training.FitResult:
    """A teacher for each seed, on all labels."""
    train = setting.for_teachers(config)
    steps = config.teacher_epochs * train.steps_per_epoch
    optimizer = adam(config.teacher_learning_rate, steps)

    def build(_: Any) -> jaxkd.Distiller:
        return normalized(jaxkd.distill(teacher_model(config), teachers.none(), supervised(), optimizer=optimizer))

    kd = over_seeds(build, (), setting.seeds(config))
    return run(kd, train, "teacher", config, steps, directory, on_eval)


def train_students(
    method: str, weights: jaxkd.Variables, config: Config, directory: pathlib.Path | None, on_eval: OnEval | None
) -> training.FitResult:
    """A student for each seed, taught by that seed's teacher with one method.

    Args:
      method: its name.
      weights: those of the teachers, stacked over the seeds.
      config: the settings.
      directory: for checkpoints and logs; None keeps nothing.
      on_eval: see `jaxkd.training.fit`.

    Returns:
      The trained seeds.
    """
    train = setting.for_students(config)
    steps = config.epochs * train.steps_per_epoch
    optimizer = adam(config.learning_rate, steps)

    def build(weights: jaxkd.Variables) -> jaxkd.Distiller:
        teacher = teachers.frozen(teacher_model(config), weights)
        return normalized(jaxkd.distill(student_model(config), teacher, objective(method, config), optimizer=optimizer))

    kd = over_seeds(build, weights, setting.seeds(config))
    return run(kd, train, method, config, steps, directory, on_eval)


def copy(variables: jaxkd.Variables) -> jaxkd.Variables:
    """Variables that outlive the state they come from."""
    return jax.tree.map(lambda x: jax.numpy.array(x, copy=True), variables)
