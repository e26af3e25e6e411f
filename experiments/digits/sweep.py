"""How the settings were chosen: ``python -m experiments.digits.sweep``, about ten minutes on two cores.

First the learning rate that is best for the student alone, which all methods then use; then each method's own weight
(and temperature). A choice is the best mean accuracy on the validation split, over seeds that the experiment itself
does not use. The test split is not read.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np
import tyro

from experiments.digits import training
from experiments.digits.config import Config, Weights
from experiments.statistics import interval
from jaxkd._core.files import write_atomically

RATES = (1e-3, 3e-3, 1e-2)
CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "kd": [{"kd": weight, "temperature": t} for weight, t in ((1.0, 2.0), (1.0, 4.0), (4.0, 2.0), (4.0, 4.0))],
    "hint": [{"hint": weight} for weight in (1.0, 10.0, 100.0)],
    "attention": [{"attention": weight} for weight in (1e3, 1e4, 1e5)],
    "relations": [{"relations": weight} for weight in (0.1, 0.3, 1.0, 3.0)],
}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Chooses the settings of the experiment on the validation split."""

    out: pathlib.Path = pathlib.Path("runs/digits-sweep/sweep.md")
    """where the table goes"""
    seeds: int = 5
    """repetitions of each candidate"""
    first_seed: int = 1000
    """the number of the first; the experiment's own begin at 0"""


def validation(result: Any, config: Config, metric: str = "accuracy") -> np.ndarray:
    """The last evaluation of every seed."""
    return np.array([result.history[-1][f"validation/{metric}[{seed}]"] for seed in range(config.seeds)])


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """The same settings but for some, weights among them."""
    weights = {name: value for name, value in settings.items() if name in Weights.__dataclass_fields__}
    others = {name: value for name, value in settings.items() if name not in weights}
    return dataclasses.replace(config, weights=dataclasses.replace(config.weights, **weights), **others)


def main(sweep: Sweep) -> None:
    """Runs every candidate and writes the table."""
    config = Config(seeds=sweep.seeds, first_seed=sweep.first_seed)
    teacher = training.train_teachers(config, None, None)
    rows = [
        "| method | setting | accuracy, validation (%) | chosen |",
        "|---|---|---|---|",
        f"| teacher | | {interval(100 * validation(teacher, config))} | |",
    ]
    print(*rows, sep="\n", flush=True)
    weights = training.copy(teacher.state.student)
    candidates = {"student": [{"learning_rate": rate} for rate in RATES], **CANDIDATES}
    for method, choices in candidates.items():
        accuracies = []
        for choice in choices:
            result = training.train_students(method, weights, with_settings(config, choice), None, None)
            accuracies.append(100 * validation(result, config))
            print(method, choice, interval(accuracies[-1]), flush=True)
        best = int(np.argmax([accuracy.mean() for accuracy in accuracies]))
        config = with_settings(config, choices[best])
        for i, (choice, accuracy) in enumerate(zip(choices, accuracies, strict=True)):
            settings = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in choice.items())
            rows.append(f"| {method} | {settings} | {interval(accuracy)} | {'yes' if i == best else ''} |")
        sweep.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(sweep.out, "\n".join(rows) + "\n")
    print(*rows, sep="\n")


if __name__ == "__main__":
    main(tyro.cli(Sweep))
