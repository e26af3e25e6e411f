"""The table, ``report.md`` and ``curves.png``, from ``results.json``."""

import pathlib
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


def table(results: dict[str, Any]) -> report.TerminalTable:
    """Returns the table for a terminal, with the parameters below it."""
    *_, student = results["methods"].values()
    note = f"parameters: teacher {results['teacher']['parameters']:,}, student {student['parameters']:,}"
    return report.results_table(COLUMNS[:-1], [row[:-1] for row in rows(results)], results["config"], note)


def markdown(results: dict[str, Any]) -> str:
    config = results["config"]
    return report.page(
        pathlib.Path(__file__).with_name("page.txt"),
        labels=config["labels"],
        first=config["first_seed"],
        last=config["first_seed"] + config["seeds"] - 1,
        table=report.markdown_table(COLUMNS, rows(results)),
        settings=report.settings_section(results),
    )


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
