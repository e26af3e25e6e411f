"""``curves.png``: how the methods learn, and what they gain."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import numpy as np

from experiments.digits.config import TITLES
from experiments.digits.report import gain
from experiments.statistics import interval

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, told apart with any form of colour vision.
COLORS = {
    "student": "#000000",
    "kd": "#0072B2",
    "hint": "#D55E00",
    "attention": "#009E73",
    "relations": "#CC79A7",
    "teacher": "#7F7F7F",
}
MARKERS = {"student": "o", "kd": "s", "hint": "^", "attention": "D", "relations": "v"}


def draw(results: dict[str, Any]) -> bytes:
    """The picture as a PNG: validation accuracy by step, and gains on the test split."""
    with plt.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), width_ratios=(3, 2), layout="constrained")
        _learning(left, results)
        _gains(right, results)
        with io.BytesIO() as file:
            # Without the version of matplotlib in it, the same results make the same file.
            figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
            plt.close(figure)
            return file.getvalue()


def _learning(axes: Any, results: dict[str, Any]) -> None:
    for name, found in results["methods"].items():
        curve = found["validation"]
        bands = [interval(100 * np.array(seeds)) for seeds in curve["accuracy"]]
        mean, half = np.array(bands).T
        axes.plot(
            curve["step"],
            mean,
            color=COLORS[name],
            marker=MARKERS[name],
            markevery=max(len(mean) // 8, 1),
            markersize=5,
            label=TITLES[name],
        )
        axes.fill_between(curve["step"], mean - half, mean + half, color=COLORS[name], alpha=0.18, linewidth=0)
    teacher = 100 * np.mean(results["teacher"]["validation"]["accuracy"][-1])
    axes.axhline(teacher, color=COLORS["teacher"], linestyle="--", label="teacher, trained")
    final = [100 * np.mean(found["validation"]["accuracy"][-1]) for found in results["methods"].values()]
    axes.set_ylim(min(final) - 12, 101)
    axes.set(xlabel="step", ylabel="accuracy on the validation split (%)", title="Learning")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="lower right", frameon=False, ncols=2)


def _gains(axes: Any, results: dict[str, Any]) -> None:
    names = [name for name in results["methods"] if name != "student"]
    for i, name in enumerate(names):
        mean, half = gain(results, name)
        axes.errorbar(mean, i, xerr=half, fmt=MARKERS[name], color=COLORS[name], capsize=5, markersize=8, linewidth=2)
        axes.annotate(
            f"{mean:+.1f} ± {half:.1f}", (mean, i), xytext=(0, 11), textcoords="offset points", ha="center", fontsize=10
        )
    axes.axvline(0, color=COLORS["student"], linewidth=1)
    axes.set_yticks(range(len(names)), [TITLES[name] for name in names])
    axes.set_ylim(len(names) - 0.5, -0.7)
    axes.margins(x=0.15)
    axes.set(xlabel="points of accuracy on the test split", title="Gain over the student alone, 95% interval")
    axes.grid(axis="x", alpha=0.3)
