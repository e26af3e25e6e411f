"""Training: the seeds of a trial, in one program or one after the other, in the loop that trains anything else."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.schemes import problem as problems
from experiments.schemes.config import Config
from experiments.schemes.inputs import Seeds
from experiments.schemes.problem import Problem
from experiments.schemes.trials import Own, Trial, measured
from jaxkd import data, distillers, metrics, training
from jaxkd.types import Batch, Context, Distiller, Metrics, Model, Variables

OnEval = Callable[[int, Mapping[str, float], Any], Any]


def run(
    trial: Trial,
    own: list[Own],
    problem: Problem,
    config: Config,
    name: str,
    directory: pathlib.Path,
    on_eval: OnEval | None = None,
    sets: list[data.Dataset] | None = None,
) -> dict[str, Any]:
    """Trains all seeds of a trial, and goes on where an interrupted training was.

    Args:
      trial: what to train.
      own: what each seed has.
      problem: what is learned.
      config: the settings.
      name: of the training, which tells it from others in the same folder.
      directory: for checkpoints and logs.
      on_eval: see `jaxkd.training.fit`.
      sets: what each seed learns from; the students' images by default.

    Returns:
      ``accuracy`` on the test split and ``curve`` on the validation split, of every seed; ``variables`` of what was
      trained, a list of seeds.
    """
    seeds = problems.numbers(config)
    loaders = [loader_of(trial, one, config, seed) for one, seed in zip(sets or problem.students, seeds, strict=True)]
    together = problem.mapped
    groups = [list(range(len(seeds)))] if together else [[i] for i in range(len(seeds))]
    accuracies, curves, variables = [], [], []
    for group in groups:
        numbers = [seeds[i] for i in group]
        kd, keys = _distiller(trial, [own[i] for i in group], problem, numbers)
        train = Seeds([loaders[i] for i in group], numbers)
        every = trial.every or max(trial.steps // 12, 1)
        result = training.fit(
            kd,
            train,
            steps=trial.steps,
            state=kd.init(keys, train.gather(train.arrays, 0)),
            eval_data={"validation": _held(problem.validation)},
            eval_every=every,
            log_every=every,
            checkpoint_every=4 * every,
            on_eval=on_eval,
            directory=directory if together else directory / str(numbers[0]),
            keep=1,
            config={"trial": name, **config.identity()},
            tensorboard=False,
            progress=False,
            chunk=100 if together else 1,
        )
        tested = training.evaluate(kd, result.state, _held(problem.test))
        rows = [row for row in result.history if "validation/accuracy[0]" in row]
        for i in range(len(group)):
            accuracies.append(tested[f"accuracy[{i}]"])
            curve = {"step": [row["step"] for row in rows]}
            for key in rows[0]:
                if key.startswith("validation/accuracy") and key.endswith(f"[{i}]"):
                    name_of = key.removeprefix("validation/").removesuffix(f"[{i}]")
                    curve[name_of] = [round(row[key], 5) for row in rows]
            curves.append(curve)
            variables.append(jax.device_get(trial.pick(distillers.select_run(result.state, i))))
    return {"accuracy": accuracies, "curve": curves, "variables": variables}


def _distiller(trial: Trial, own: list[Own], problem: Problem, seeds: list[int]) -> tuple[Distiller, Any]:
    """The seeds as one distiller, and their keys: a seed's weights depend on its own number and on no other."""
    stacked = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(one) for one in x]), *own)

    def make(seed: Any) -> Distiller:
        mine = jax.tree.map(lambda x: x[seed], stacked)
        return measured(trial.make(mine), trial, problem.normalize)

    kd = distillers.sweep(make, batch_axis=0, seed=np.arange(len(seeds)))
    return kd, jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(jnp.asarray(seeds))


def loader_of(trial: Trial, images: data.Dataset, config: Config, seed: int) -> Any:
    """The input of a seed."""
    if trial.loader is not None:
        return trial.loader(images, seed)
    return data.Resident(images, config.batch, drop_remainder=True)


def accuracy_of(model: Model, variables: Variables, problem: Problem) -> float:
    """The accuracy of a network on the test split."""

    def evaluate(state: Variables, batch: Batch) -> Metrics:
        given = problem.normalize(batch)
        outputs, _ = model.apply(state, given, key=None, train=False)
        return metrics.classification(Context({"logits": outputs["logits"]}, {}, given, 0))

    never: Any = None  # nothing is trained
    kd = Distiller(never, never, evaluate)
    variables = jax.tree.map(jnp.asarray, variables)
    return training.evaluate(kd, variables, _held(problem.test))["accuracy"]  # type: ignore[arg-type]


def _held(dataset: data.Dataset) -> data.Resident:
    return data.Resident(dataset, min(100, data.num_examples(dataset)), shuffle=False)
