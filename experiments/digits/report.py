"""The table, for the terminal and for ``report.md``, from what is in ``results.json`` and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.table import Table

from experiments.digits.config import TITLES
from experiments.statistics import Interval, interval

COLUMNS = ("method", "accuracy (%)", "gain over alone (points)", "agreement (%)", "calibration error (%)", "parameters")


def gain(results: dict[str, Any], method: str) -> Interval:
    """What a method adds to the accuracy of the student alone, in points, seed by seed."""
    accuracy, alone = (np.array(results["methods"][name]["accuracy"]) for name in (method, "student"))
    return interval(100 * (accuracy - alone))


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """The cells of the table: teacher first."""

    def percent(found: dict[str, Any], name: str) -> str:
        return f"{interval(100 * np.array(found[name]))}" if name in found else ""

    cells: list[tuple[str, ...]] = []
    for name, found in {"teacher": results["teacher"], **results["methods"]}.items():
        gained = "" if name in ("teacher", "student") else f"{gain(results, name):+.2f}"
        accuracy, agreement, error = (percent(found, key) for key in ("accuracy", "agreement", "calibration_error"))
        cells.append((TITLES[name], accuracy, gained, agreement, error, f"{found['parameters']:,}"))
    return cells


def table(results: dict[str, Any]) -> Table:
    """The table for a terminal."""
    shown = Table(title=f"Test split: mean ± 95% interval over {results['config']['seeds']} seeds")
    for i, column in enumerate(COLUMNS):
        shown.add_column(column, justify="right" if i else "left")
    for row in rows(results):
        shown.add_row(*row)
    return shown


def markdown(results: dict[str, Any]) -> str:
    """``report.md``."""
    config, versions = results["config"], results["versions"]
    first, last = config["first_seed"], config["first_seed"] + config["seeds"] - 1
    lines = [" | ".join(row) for row in [COLUMNS, ("---",) + ("---:",) * (len(COLUMNS) - 1), *rows(results)]]
    tabulated = "\n".join(f"| {line} |" for line in lines)
    settings = "\n".join(f"| {name} | {value} |" for name, value in _flat(config).items())
    return f"""# Digits, few of them labelled

A student of two small layers learns scikit-learn's handwritten digits from {config["labels"]} labelled examples. Its
teacher, wider, has learned from the labels of all 1097 training examples. The other training images reach the student
without their labels: there the teacher's outputs are all there is to learn from. The student alone sees the same
batches in the same order, and learns from the labelled half of each.

Command: `python -m experiments.digits` with the settings below. Seeds {first} to {last}; a seed has labelled examples,
a teacher, initial weights and an order of batches of its own, and the same ones for every method.

## On the 400 examples of the test split

{tabulated}

Means over the seeds with their 95% intervals (Student's t). The gain is that of a seed over the student alone with the
same seed, then averaged. Agreement is how often a student chooses the class that its teacher chooses; the calibration
error is the expected one, with 15 bins of equal width. The last step of training is what is measured; the test split
was read once, after all training.

![Validation accuracy during training, and gains on the test split](curves.png)

## Settings

| setting | value |
| --- | --- |
{settings}

Versions: {", ".join(f"{name} {version}" for name, version in versions.items())}.
"""


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return flat
