"""The table, ``report.md`` and ``curves.png``, from ``results.json``."""

from typing import Any

import numpy as np

from experiments.digits.config import METHODS, TITLES
from experiments.kit import plots, report, statistics

COLUMNS = ("method", "accuracy (%)", "gain over alone (points)", "agreement (%)", "calibration error (%)", "parameters")


def gain(results: dict[str, Any], method: str) -> statistics.Interval:
    """Returns the gain of a method over the student alone, paired over the seeds."""
    return statistics.gain(*(results["methods"][name]["accuracy"] for name in (method, "student")))


def rows(results: dict[str, Any]) -> list[report.Row]:
    found: list[report.Row] = []
    for name, one in {"teacher": results["teacher"], **results["methods"]}.items():
        measures = ("accuracy", "agreement", "calibration_error")
        accuracy, agreement, error = (f"{statistics.percent(one[key])}" if key in one else "" for key in measures)
        gained = "" if name in ("teacher", "student") else f"{gain(results, name):+.2f}"
        found.append((TITLES[name], accuracy, gained, agreement, error, f"{one['parameters']:,}"))
    return found


def markdown(results: dict[str, Any]) -> str:
    config = results["config"]
    first, last = config["first_seed"], config["first_seed"] + config["seeds"] - 1
    return f"""# Digits, few of them labelled

A student of two small layers learns scikit-learn's handwritten digits from {config["labels"]} labelled examples. Its
teacher, wider, has learned from the labels of all 1097 training examples. The other training images reach the student
without their labels: there the teacher's outputs are all there is to learn from. The student alone sees the same
batches in the same order, and learns from the labelled half of each.

Command: `python -m experiments.digits` with the settings below. Seeds {first} to {last}; a seed has labelled examples,
a teacher, initial weights and an order of batches of its own, and the same ones for every method.

## On the 400 examples of the test split

{report.markdown_table(COLUMNS, rows(results))}

Means over the seeds with their 95% intervals (Student's t). The gain is that of a seed over the student alone with the
same seed, then averaged. Agreement is how often a student chooses the class that its teacher chooses; the calibration
error is the expected one, with 15 bins of equal width. The last step of training is what is measured; the test split
was read once, after all training.

![Validation accuracy during training, and gains on the test split](curves.png)

{report.settings_section(results)}"""


def plot(results: dict[str, Any]) -> bytes:
    """Draws validation accuracy by step, and gains on the test split, as a PNG."""
    methods = results["methods"]
    styles = {name: plots.style(METHODS[name]) for name in methods}
    with plots.figure(1, 2, 12, 4.8, width_ratios=(3, 2)) as (_, (left, right), save):
        for name, found in methods.items():
            seeds = 100 * np.array(found["validation"]["accuracy"]).T
            plots.band(left, found["validation"]["step"], seeds, styles[name], label=TITLES[name])
        teacher = 100 * np.mean(results["teacher"]["validation"]["accuracy"][-1])
        left.axhline(teacher, color="#7F7F7F", linestyle="--", label="teacher, trained")
        lowest = min(100 * np.mean(found["validation"]["accuracy"][-1]) for found in methods.values())
        left.set(xlabel="step", ylabel="accuracy on the validation split (%)", title="Learning")
        left.set_ylim(lowest - 12, 101)
        left.grid(axis="y", alpha=0.3)
        left.legend(loc="lower right", frameon=False, ncols=2)
        names = [name for name in methods if name != "student"]
        texts = [plots.gain(right, i, *gain(results, name), styles[name]) for i, name in enumerate(names)]
        plots.rows(right, [TITLES[name] for name in names], texts)
        right.set(xlabel="points of accuracy on the test split", title="Gain over the student alone, 95% interval")
        right.margins(x=0.15)
        return save()
