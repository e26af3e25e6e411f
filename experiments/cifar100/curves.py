"""The plots of a report: learning curves, gains, agreement with the teacher, reliability."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import matplotlib
import numpy as np

from experiments.cifar100 import published
from experiments.cifar100.published import METHODS, TITLES
from experiments.cifar100.report import PICTURES, picture
from experiments.statistics import interval

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, told apart with any form of colour vision, but the yellow, which is too faint for a line.
# With more methods than colours, lines and markers tell them apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
LINES = ("-", "--", "-.")
MARKERS = ("s", "^", "D", "v", "P", "X", "o", "<", ">", "p", "h", "*", "d", "8", "H", "s", "^", "D", "v", "P")
ALONE = "#000000"
WIDTH = 12.0
PANELS = 5


def draw(results: Mapping[str, Any]) -> dict[str, bytes]:
    """All plots of all pairs as PNGs, by the names of their files.

    Args:
      results: as `experiments.cifar100.report.collect` makes them.
    """
    return {picture(pair, kind): PLOTS[kind](results, pair) for pair in results["pairs"] for kind in PICTURES}


def style(method: str) -> dict[str, Any]:
    """Colour, line and marker of a method: the same in every plot, whatever else is in it.

    >>> style("student")["color"], style("kd") != style("crd")
    ('#000000', True)
    """
    if method == "student":
        return {"color": ALONE, "linestyle": "-", "marker": "o"}
    number = METHODS.index(method) - 1 if method in METHODS else len(METHODS) - 1
    return {
        "color": COLORS[number % len(COLORS)],
        "linestyle": LINES[number // len(COLORS) % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def learning(results: Mapping[str, Any], pair: str) -> bytes:
    """Test accuracy by epoch, the whole training and its last quarter, which is where methods part."""
    methods = _named(results, pair)
    with _figure(1, 2, WIDTH, 5.2, width_ratios=(3, 3)) as (figure, (whole, end), save):
        ends = []
        faint = min(0.18, 0.8 / len(methods))
        for name, found in methods.items():
            epochs = np.array(found["curve"]["epoch"])
            seeds = _shares(found["curve"].get("test/accuracy", []))
            if not len(seeds):
                continue
            mean = seeds.mean(axis=0)
            for axes, size in ((whole, 4), (end, 5)):
                marks = (METHODS.index(name) if name in METHODS else 0) % 4, max(len(epochs) // 8, 1)
                axes.plot(epochs, mean, label=TITLES.get(name, name), **style(name), markersize=size, markevery=marks)
                if len(seeds) > 1:
                    half = np.array([interval(column).half for column in seeds.T])
                    axes.fill_between(epochs, mean - half, mean + half, color=style(name)["color"], alpha=faint, lw=0)
            ends.append((epochs, mean))
        _last_quarter(end, ends)
        teacher = results["pairs"][pair]["teacher"]
        if teacher and teacher["last"] is not None:
            whole.axhline(100 * teacher["last"], color=ALONE, linestyle=":", linewidth=1, label="teacher")
        for axes, title in ((whole, "Whole training"), (end, "Last quarter")):
            axes.set(xlabel="epoch", ylabel="test accuracy (%)", title=title)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(axis="y", alpha=0.3)
        figure.suptitle(_arrow(pair))
        # From the top, as the lines end; the teacher's, which is level, is last.
        order = sorted(range(len(ends)), key=lambda i: -np.nan_to_num(ends[i][1][-1]))
        handles, labels = whole.get_legend_handles_labels()
        order += range(len(ends), len(handles))
        named = [handles[i] for i in order], [labels[i] for i in order]
        figure.legend(*named, loc="outside right center", frameon=False, fontsize=9, handlelength=3.2)
        return save()


def gains(results: Mapping[str, Any], pair: str) -> bytes:
    """The gain of each method over the student alone, paired over the seeds, and the published gain."""
    methods = {name: one for name, one in _named(results, pair).items() if name != "student"}
    with _figure(1, 1, 9.0, 2.0 + 0.36 * max(len(methods), 2)) as (_, axes, save):
        texts = []
        for i, (name, one) in enumerate(methods.items()):
            gain, paper = one["gain"]["last"].get("student"), published.gain(pair, name)
            if paper is not None:
                axes.plot(paper, i, "o", mfc="none", mec=ALONE, ms=9, mew=1.2, zorder=1)
            texts.append("")
            if gain is not None and gain["mean"] is not None:
                mean, half = 100 * gain["mean"], 100 * (gain["half"] or 0)
                kind = style(name)
                axes.errorbar(mean, i, xerr=half or None, fmt=kind["marker"], color=kind["color"], capsize=4, ms=6)
                texts[-1] = f"{mean:+z.2f} " + (f"± {half:.2f}" if gain["half"] is not None else "(n = 1)")
        compared = any(published.gain(pair, name) is not None for name in methods)
        if compared:
            axes.plot([], [], "o", mfc="none", mec=ALONE, ms=9, mew=1.2, label="published (240 epochs, all images)")
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=9)
        axes.axvline(0, color=ALONE, linewidth=1)
        axes.set_yticks(range(len(methods)), [TITLES.get(name, name) for name in methods])
        axes.set_ylim(max(len(methods), 1) - 0.4, -0.6)
        beside = axes.secondary_yaxis("right")
        beside.set_yticks(range(len(methods)), texts)
        beside.tick_params(length=0)
        beside.spines["right"].set_visible(False)
        axes.margins(x=0.08)
        title = f"{_arrow(pair)}: gain over the student alone, last epoch, 95% interval"
        axes.set_title(title, pad=26 if compared else None)
        axes.set_xlabel("points of test accuracy")
        axes.grid(axis="x", alpha=0.3)
        return save()


def agreement(results: Mapping[str, Any], pair: str) -> bytes:
    """How often a student chooses as its teacher does, against how often it is right: a point for each method."""
    teacher = results["pairs"][pair]["teacher"]
    with _figure(1, 1, 8.6, 5.4) as (figure, axes, save):
        for name, one in _named(results, pair).items():
            x, y = one["agreement"], one["last"]
            if x is None or x["mean"] is None or y["mean"] is None:
                continue
            kind = style(name)
            axes.errorbar(
                100 * x["mean"],
                100 * y["mean"],
                xerr=None if x["half"] is None else 100 * x["half"],
                yerr=None if y["half"] is None else 100 * y["half"],
                fmt=kind["marker"],
                color=kind["color"],
                mfc=kind["color"] if kind["linestyle"] == "-" else "white",
                ms=8,
                elinewidth=0.6,
                label=TITLES.get(name, name),
            )
        if teacher and teacher["last"] is not None:
            axes.axhline(100 * teacher["last"], color=ALONE, linestyle=":", label="teacher")
        axes.margins(0.08)
        axes.set(
            xlabel="agreement with the teacher (%)",
            ylabel="test accuracy (%)",
            title=f"{_arrow(pair)}: last epoch, 95% intervals",
        )
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right center", frameon=False, fontsize=9)
        return save()


def reliability(results: Mapping[str, Any], pair: str) -> bytes:
    """A panel for each method: how often it is right at each confidence, all seeds together."""
    teacher = results["pairs"][pair]["teacher"]
    panels = {"teacher": teacher} if teacher else {}
    panels |= _named(results, pair)
    lines = -(-len(panels) // PANELS)
    with _figure(lines, PANELS, WIDTH, 0.6 + 2.5 * lines, sharex=True, sharey=True) as (figure, grid, save):
        flat = np.ravel(grid)
        for axes, (name, one) in zip(flat, panels.items(), strict=False):
            bins = {key: np.array(values, np.float64) for key, values in one["reliability"].items()}
            filled, count = bins["count"] > 0, len(bins["count"])
            centres = (np.arange(count) + 0.5) / count
            share = bins["count"] / max(bins["count"].sum(), 1)
            color = ALONE if name == "teacher" else style(name)["color"]
            axes.bar(centres[filled], bins["accuracy"][filled], 1 / count, color=color, alpha=0.55, edgecolor="white")
            axes.plot(bins["confidence"][filled], bins["accuracy"][filled], ".", color=ALONE, markersize=4)
            axes.plot([0, 1], [0, 1], color=ALONE, linestyle=":", linewidth=1)
            axes.stairs(share, np.linspace(0, 1, count + 1), color=ALONE, linewidth=0.7, alpha=0.6)
            error = one["calibration_error"] if name == "teacher" else (one["calibration_error"] or {}).get("mean")
            told = "" if error is None else f"  {100 * error:.1f}"
            axes.set_title(TITLES.get(name, name) + told, fontsize=10)
            axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        for axes in flat[len(panels) :]:
            axes.set_axis_off()
        figure.supxlabel("confidence", fontsize=10)
        figure.supylabel("accuracy", fontsize=10)
        figure.suptitle(
            f"{_arrow(pair)}: reliability and calibration error (%); thin line: share of the images", fontsize=11
        )
        return save()


PLOTS: dict[str, Callable[[Mapping[str, Any], str], bytes]] = {
    "learning": learning,
    "gains": gains,
    "agreement": agreement,
    "reliability": reliability,
}


@contextlib.contextmanager
def _figure(rows: int, columns: int, width: float, height: float, **options: Any) -> Iterator[Any]:
    """A figure, its axes, and how to save it as a PNG; closed when it is done with."""
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)

        def save() -> bytes:
            with io.BytesIO() as file:
                # Without the version of matplotlib in it, the same results make the same file.
                figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
                return file.getvalue()

        try:
            yield figure, axes, save
        finally:
            plt.close(figure)


def _named(results: Mapping[str, Any], pair: str) -> dict[str, Any]:
    found: dict[str, Any] = results["pairs"][pair]["methods"]
    return found


def _shares(seeds: list[list[float | None]]) -> np.ndarray:
    """In per cent, ``[seeds, epochs]``; None becomes NaN, which is a gap in a line."""
    return 100 * np.array([[np.nan if v is None else v for v in seed] for seed in seeds], np.float64)


def _last_quarter(axes: Any, ends: list[tuple[np.ndarray, np.ndarray]]) -> None:
    """Shows the last quarter of the epochs, and of the accuracies what is seen there."""
    if not ends:
        return
    last = max(epochs[-1] for epochs, _ in ends)
    seen = np.concatenate([mean[epochs >= 0.75 * last] for epochs, mean in ends])
    seen = seen[np.isfinite(seen)]
    if len(seen):
        room = max(0.08 * (seen.max() - seen.min()), 0.2)
        axes.set(xlim=(0.74 * last, 1.01 * last), ylim=(seen.min() - room, seen.max() + room))


def _arrow(pair: str) -> str:
    return pair.replace(":", " → ")
