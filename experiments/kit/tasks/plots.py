"""Figures of a task: gains over the student alone, and learning curves."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.kit import plots
from experiments.kit.tasks import report
from experiments.kit.tasks.task import Task

EQUAL = {"steps": ("o", plots.COLORS[0], -0.14, "equal steps"), "cost": ("s", plots.COLORS[1], 0.14, "equal FLOPs")}


def gains(task: Task, results: Mapping[str, Any]) -> bytes:
    """Draws the paired gains over the student alone, at equal steps and at equal cost."""
    found = [one for one in results["rows"].values() if one["gains"]]
    compared = {key: EQUAL[key] for key in report.equal(task) if any(one["gains"].get(key) for one in found)}
    measure = task.measures[task.first]
    with plots.figure(1, 1, 9, 1.6 + 0.42 * max(len(found), 1)) as (figure, axes, save):
        for key, (marker, color, offset, name) in compared.items():
            for i, one in enumerate(found):
                gain = one["gains"].get(key)
                if gain is not None and gain["mean"] is not None:
                    half = None if gain["half"] is None else measure.scale * gain["half"]
                    style = {"marker": marker, "color": color}
                    plots.gain(axes, i + offset, measure.scale * gain["mean"], half, style)
            axes.plot([], [], marker=marker, color=color, linestyle="", label=name)
        plots.rows(axes, [one["title"] for one in found])
        better = "right" if measure.higher else "left"
        axes.set(xlabel=f"difference of {measure.title} from the student alone, 95% interval; better to the {better}")
        if compared:
            figure.legend(loc="outside upper right", frameon=False, ncols=2)
        return save()


def curves(task: Task, results: Mapping[str, Any]) -> bytes:
    """Draws a metric of the evaluations by step, a line for each method."""
    with plots.figure(1, 1, 9.5, 5.2) as (figure, axes, save):
        for number, one in enumerate(results["rows"].values()):
            seeds = [[row for row in curve if task.curve in row] for curve in one["curve"].values()]
            if not all(seeds) or len({tuple(row["step"] for row in rows) for rows in seeds}) != 1:
                continue
            style = plots.style("student") if number == 0 else plots.numbered(number - 1)
            values = np.array([[row[task.curve] for row in rows] for rows in seeds], np.float64)
            plots.band(axes, [row["step"] for row in seeds[0]], values, style, 0.12, label=one["title"])
        axes.set(xlabel="step", ylabel=task.curve)
        axes.grid(axis="y", alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside right center", frameon=False, fontsize=9)
        return save()
