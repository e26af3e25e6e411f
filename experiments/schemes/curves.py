"""The plots: gains at equal cost, and how the schemes learn."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import numpy as np

from experiments.schemes.report import gain
from experiments.statistics import interval

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Okabe and Ito's colours, told apart with any form of colour vision.
ALONE, OFFLINE = "#0072B2", "#D55E00"
LIMIT = 15.0  # points shown of the gains
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def _png(figure: Any) -> bytes:
    with io.BytesIO() as file:
        # Without the version of matplotlib in it, the same results make the same file.
        figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
        plt.close(figure)
        return file.getvalue()


def gains(results: dict[str, Any]) -> bytes:
    """Of every scheme, what it adds to the student alone and to offline distillation at equal cost."""
    found = list(results["rows"].values())
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(9, 1.6 + 0.42 * len(found)), layout="constrained")
        for i, one in enumerate(found):
            for over, color, marker, offset in (("alone", ALONE, "o", -0.14), ("offline", OFFLINE, "s", 0.14)):
                mean, half = gain(one, over)
                if abs(mean) < LIMIT:
                    axes.errorbar(mean, i + offset, xerr=half, fmt=marker, color=color, capsize=3, markersize=5)
                    continue
                edge = LIMIT if mean > 0 else -LIMIT  # what lies far out is said in words
                axes.annotate(
                    f"{'→' if mean > 0 else '←'} {mean:+.1f} ± {half:.1f}",
                    (0.98 * edge, i + offset),
                    color=color,
                    ha="right" if mean > 0 else "left",
                    va="center",
                    fontsize=8,
                )
        axes.axvline(0, color="#000000", linewidth=1)
        axes.set_yticks(range(len(found)), [one["title"] for one in found])
        axes.set_ylim(len(found) - 0.5, -0.6)
        axes.set_xlim(-LIMIT, LIMIT)
        axes.set(xlabel="points of test accuracy at equal training cost, 95% interval")
        axes.grid(axis="x", alpha=0.3)
        handles = [
            axes.plot([], [], marker=marker, color=color, linestyle="", label=label)[0]
            for marker, color, label in (
                ("o", ALONE, "over the student alone"),
                ("s", OFFLINE, "over offline distillation"),
            )
        ]
        figure.legend(handles=handles, loc="outside upper right", frameon=False, ncols=2)
        return _png(figure)


def learning(results: dict[str, Any]) -> bytes:
    """Validation accuracy by training cost, a panel for each group of schemes."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in results["rows"].values():
        if "curve" in one:
            groups.setdefault(one["group"], []).append(one)
    with plt.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        columns = min(3, max(len(groups), 1))
        lines = -(-max(len(groups), 1) // columns)
        figure, panels = plt.subplots(
            lines, columns, figsize=(5.4 * columns, 4.8 * lines), layout="constrained", squeeze=False
        )
        for axes in panels.flat[len(groups) :]:
            axes.axis("off")
        for axes, (group, members) in zip(panels.flat, groups.items(), strict=False):
            for number, one in enumerate(members):
                color, style = CYCLE[number % len(CYCLE)], ("-", "--", ":")[number // len(CYCLE) % 3]
                steps = np.array(one["curve"][0]["step"])
                seeds = 100 * np.array([curve["accuracy"] for curve in one["curve"]])
                mean, half = np.array([interval(column) for column in seeds.T]).T
                share = steps / steps[-1]
                axes.plot(share, mean, color=color, linestyle=style, label=one["title"])
                axes.fill_between(share, mean - half, mean + half, color=color, alpha=0.15, linewidth=0)
            axes.set(title=group, xlabel="share of the scheme's training", ylabel="validation accuracy (%)")
            axes.grid(alpha=0.3)
            # A student whose turn comes late begins late: what is of interest is where all end.
            ends = [100 * np.mean([curve["accuracy"][-1] for curve in one["curve"]]) for one in members]
            axes.set_ylim(max(min(ends) - 20, 0), min(max(ends) + 4, 100))
            axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
        return _png(figure)


def capacity(results: dict[str, Any]) -> bytes:
    """Teachers of all sizes, and what the same student becomes with each; chains of assistants beside them."""
    networks, rows = results["networks"], results["rows"]
    sizes = [name.removeprefix("gap_") for name in rows if name.startswith("gap_")]
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
        parameters = [networks[size]["parameters"] for size in sizes]
        for label, color, marker, values in (
            ("teacher", "#7F7F7F", "^", [networks[size]["accuracy"] for size in sizes]),
            ("its student", OFFLINE, "s", [rows[f"gap_{size}"]["accuracy"] for size in sizes]),
        ):
            mean, half = np.array([interval(100 * np.array(one)) for one in values]).T
            axes.errorbar(parameters, mean, yerr=half, color=color, marker=marker, capsize=4, label=label)
        chains = {name: one for name, one in rows.items() if one["group"] == "assistants"}
        for color, (name, one) in zip(CYCLE[2:], chains.items(), strict=False):
            mean, half = interval(100 * np.array(one["accuracy"]))
            size = "huge" if name.startswith("huge") else "teacher"
            x = networks[size]["parameters"] * (1.06 if name.endswith("s") else 0.94)
            axes.errorbar(x, mean, yerr=half, color=color, marker="o", capsize=4, linestyle="", label=one["title"])
        alone = 100 * np.mean(rows[f"gap_{sizes[0]}"]["alone"]["accuracy"])
        if "alone" in rows:
            alone = 100 * np.mean(rows["alone"]["accuracy"])
        axes.axhline(alone, color="#000000", linestyle="--", linewidth=1, label="student alone")
        axes.set(xscale="log", xlabel="parameters of the teacher", ylabel="test accuracy (%)")
        axes.set_xticks(parameters, [f"{size}\n{count:,}" for size, count in zip(sizes, parameters, strict=True)])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return _png(figure)
