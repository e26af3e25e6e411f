"""One training of all seeds, as one program or one after the other."""

from __future__ import annotations

import pathlib
from typing import Any

import jax

import jaxkd
from experiments.kit import command, inputs, training
from experiments.schemes.method import Own, Setting, Training
from jaxkd import data


def run(
    of: Training,
    own: list[Own],
    setting: Setting,
    name: str,
    directory: pathlib.Path,
    sets: list[data.Dataset] | None = None,
) -> dict[str, Any]:
    """Trains all seeds, or resumes an interrupted training."""
    problem, config = setting.problem, setting.config
    seeds = command.seeds(config)
    loaders = [of.input(one, config, seed) for one, seed in zip(sets or problem.students, seeds, strict=True)]
    every = of.every or max(of.steps // 12, 1)
    found: dict[str, list[Any]] = {"accuracy": [], "curve": [], "variables": []}
    indices = list(range(len(seeds)))
    for group in [indices] if problem.mapped else [[i] for i in indices]:
        numbers = [seeds[i] for i in group]
        kd, keys = training.over_seeds(
            lambda one: of.measured(one, problem.normalize), [own[i] for i in group], numbers
        )
        result = training.run(
            kd,
            inputs.Seeds([loaders[i] for i in group], numbers),
            {"validation": _held(problem.validation)},
            steps=of.steps,
            eval_every=every,
            chunk=100 if problem.mapped else 1,
            key=keys,
            log_every=every,
            checkpoint_every=4 * every,
            directory=directory if problem.mapped else directory / str(numbers[0]),
            config={"training": name, **config.identity()},
            tensorboard=False,
        )
        tested = jaxkd.training.evaluate(kd, result.state, _held(problem.test))
        for i in range(len(group)):
            rows = [row for row in training.of_seed(result.history, i) if "validation/accuracy" in row]
            curve = {"step": [row["step"] for row in rows]}
            for key in rows[0]:
                if key.startswith("validation/accuracy"):
                    curve[key.removeprefix("validation/")] = [round(row[key], 5) for row in rows]
            found["accuracy"].append(tested[f"accuracy[{i}]"])
            found["curve"].append(curve)
            found["variables"].append(jax.device_get(of.pick(jaxkd.distillers.select_run(result.state, i))))
    return found


def _held(dataset: data.Dataset) -> data.Resident:
    return data.Resident(dataset, min(100, data.num_examples(dataset)), shuffle=False)
