"""The plots: gains at equal cost, learning curves, and teachers of all sizes."""

from typing import Any

import numpy as np

from experiments.kit import plots
from experiments.kit.plots import ALONE, COLORS
from experiments.kit.statistics import percent
from experiments.schemes.report import gain

OFFLINE = COLORS[1]
LIMIT = 15.0  # points that the axis of gains shows; larger gains are given as text


def draw(results: dict[str, Any]) -> dict[str, bytes]:
    """Returns the plots of the report as PNGs, by the names of their files."""
    drawn = {"gains.png": gains(results), "curves.png": learning(results)}
    sizes = any(name.startswith("gap_") for name in results["rows"])
    return drawn | ({"capacity.png": capacity(results)} if sizes else {})


def gains(results: dict[str, Any]) -> bytes:
    found = list(results["rows"].values())
    marks = {
        "alone": ("o", COLORS[0], -0.14, "the student alone"),
        "offline": ("s", OFFLINE, 0.14, "offline distillation"),
    }
    with plots.figure(1, 1, 9, 1.6 + 0.42 * len(found)) as (figure, axes, save):
        for over, (marker, color, offset, name) in marks.items():
            for i, one in enumerate(found):
                mean, half = gain(one, over)
                if abs(mean) < LIMIT:
                    plots.gain(axes, i + offset, mean, half, {"marker": marker, "color": color})
                    continue
                text, place = f"{'→' if mean > 0 else '←'} {mean:+.1f} ± {half:.1f}", "right" if mean > 0 else "left"
                edge = 0.98 * (LIMIT if mean > 0 else -LIMIT), i + offset
                axes.annotate(text, edge, color=color, ha=place, va="center", fontsize=8)
            axes.plot([], [], marker=marker, color=color, linestyle="", label=f"over {name}")
        plots.rows(axes, [one["title"] for one in found])
        axes.set(xlim=(-LIMIT, LIMIT), xlabel="points of test accuracy at equal training cost, 95% interval")
        figure.legend(loc="outside upper right", frameon=False, ncols=2)
        return save()


def learning(results: dict[str, Any]) -> bytes:
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in results["rows"].values():
        groups.setdefault(one["group"], []).append(one)
    columns = min(3, max(len(groups), 1))
    lines = -(-max(len(groups), 1) // columns)
    with plots.figure(lines, columns, 5.4 * columns, 4.8 * lines, squeeze=False) as (_, panels, save):
        for axes in panels.flat[len(groups) :]:
            axes.axis("off")
        for axes, (group, members) in zip(panels.flat, groups.items(), strict=False):
            ends = []
            for number, one in enumerate(members):
                steps = np.array(one["curve"][0]["step"])
                seeds = [[100 * x for x in curve["accuracy"]] for curve in one["curve"]]
                style = {**plots.numbered(number), "marker": ""}
                ends.append(plots.band(axes, steps / steps[-1], seeds, style, 0.15, label=one["title"])[-1])
            axes.set(title=group, xlabel="share of the training", ylabel="validation accuracy (%)")
            axes.grid(alpha=0.3)
            # A student whose turn comes late begins late: the end of the lines is of interest.
            axes.set_ylim(max(min(ends) - 20, 0), min(max(ends) + 4, 100))
            axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
        return save()


def capacity(results: dict[str, Any]) -> bytes:
    """Draws teachers of all sizes and their students, and chains of assistants."""
    networks, rows = results["networks"], results["rows"]
    sizes = [name.removeprefix("gap_") for name in rows if name.startswith("gap_")]
    with plots.figure(1, 1, 8, 4.6) as (_, axes, save):
        parameters = [networks[size]["parameters"] for size in sizes]
        taught = {size: rows[f"gap_{size}"] for size in sizes}
        for label, color, marker, found in (
            ("teacher", "#7F7F7F", "^", networks),
            ("its student", OFFLINE, "s", taught),
        ):
            mean, half = np.array([percent(found[size]["accuracy"]) for size in sizes]).T
            axes.errorbar(parameters, mean, yerr=half, color=color, marker=marker, capsize=4, label=label)
        chains = {name: one for name, one in rows.items() if one["group"] == "assistants"}
        for color, (name, one) in zip(COLORS[2:], chains.items(), strict=False):
            mean, half = percent(one["accuracy"])
            x = networks["huge" if name.startswith("huge") else "teacher"]["parameters"]
            x *= 1.06 if name.endswith("s") else 0.94
            axes.errorbar(x, mean, yerr=half, color=color, marker="o", capsize=4, linestyle="", label=one["title"])
        alone = rows["alone"] if "alone" in rows else rows[f"gap_{sizes[0]}"]["alone"]
        level = 100 * np.mean(alone["accuracy"])
        axes.axhline(level, color=ALONE, linestyle="--", linewidth=1, label="student alone")
        axes.set(xscale="log", xlabel="parameters of the teacher", ylabel="test accuracy (%)")
        axes.set_xticks(parameters, [f"{size}\n{count:,}" for size, count in zip(sizes, parameters, strict=True)])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return save()
