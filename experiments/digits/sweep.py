"""The choice of the settings: ``python -m experiments.digits.sweep``.

First the learning rate that is best for the student alone, which all methods then use; then each method's own weight
(and temperature). A choice is the best mean accuracy on the validation split, over seeds that the experiment itself
does not use. The test split is not read.
"""

import dataclasses
import pathlib
import sys
from typing import Any

import numpy as np
from rich.console import Console

from experiments.digits import problem
from experiments.digits.config import METHODS, Config, Weights
from experiments.kit import command, files, report
from experiments.kit.statistics import percent

CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "student": [{"learning_rate": rate} for rate in (1e-3, 3e-3, 1e-2)],
    "kd": [{"kd": weight, "temperature": t} for weight, t in ((1.0, 2.0), (1.0, 4.0), (4.0, 2.0), (4.0, 4.0))],
    "hint": [{"hint": weight} for weight in (1.0, 10.0, 100.0)],
    "attention": [{"attention": weight} for weight in (1e3, 1e4, 1e5)],
    "relations": [{"relations": weight} for weight in (0.1, 0.3, 1.0, 3.0)],
}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Choose the settings of the experiment on the validation split."""

    out: pathlib.Path = pathlib.Path("runs/digits-sweep/sweep.md")  # file of the table
    seeds: int = 5  # repetitions of each candidate
    first_seed: int = 1000  # first of the seeds; the experiment's own begin at 0


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    weights = {name: value for name, value in settings.items() if name in Weights.__dataclass_fields__}
    others = {name: value for name, value in settings.items() if name not in weights}
    return dataclasses.replace(config, weights=dataclasses.replace(config.weights, **weights), **others)


def main(sweep: Sweep, console: Console) -> None:
    config = Config(seeds=sweep.seeds, first_seed=sweep.first_seed)

    def accuracy(result: Any) -> Any:
        return problem.validation(result, config)[1][-1]

    teacher = problem.train("teacher", None, config, None)
    rows = [("teacher", "", f"{percent(accuracy(teacher))}", "")]
    for method in METHODS:
        candidates = [with_settings(config, choice) for choice in CANDIDATES[method]]
        found = [accuracy(problem.train(method, teacher.state.student, one, None)) for one in candidates]
        best = int(np.argmax([one.mean() for one in found]))
        config = candidates[best]
        for i, (choice, one) in enumerate(zip(CANDIDATES[method], found, strict=True)):
            settings = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in choice.items())
            rows.append((method, settings, f"{percent(one)}", "yes" if i == best else ""))
            console.print(*rows[-1], highlight=False)
        head = ("method", "setting", "accuracy, validation (%)", "chosen")
        files.write(sweep.out, report.markdown_table(head, rows, numbers=False) + "\n")


if __name__ == "__main__":
    sys.exit(command.run("digits.sweep", Sweep, main))
