"""Figures: learning curves, gains, agreement with the teacher, reliability."""

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from experiments.kit.methods import METHODS, TITLES
from experiments.kit.statistics import interval

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# The colors of Okabe and Ito, which are told apart with any color vision, without the yellow, which is too faint for a
# line. With more methods than colors, lines and markers tell them apart.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
LINES = ("-", "--", "-.")
MARKERS = ("s", "^", "D", "v", "P", "X", "o", "<", ">", "p", "h", "*", "d", "8", "H", "s", "^", "D", "v", "P")
ALONE = "#000000"
PANELS = 5

Style = dict[str, Any]


@contextlib.contextmanager
def figure(
    rows: int, columns: int, width: float, height: float, **options: Any
) -> Iterator[tuple[Any, Any, Callable[[], bytes]]]:
    """Yields a figure, its axes, and a function that returns it as a PNG."""
    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        made, axes = plt.subplots(rows, columns, figsize=(width, height), layout="constrained", **options)

        def save() -> bytes:
            with io.BytesIO() as file:
                # The metadata leave out the version of matplotlib, so that the same results give the same file.
                made.savefig(file, format="png", dpi=130, metadata={"Software": None})
                return file.getvalue()

        try:
            yield made, axes, save
        finally:
            plt.close(made)


def numbered(number: int) -> Style:
    line, marker = LINES[number // len(COLORS) % len(LINES)], MARKERS[number % len(MARKERS)]
    return {"color": COLORS[number % len(COLORS)], "linestyle": line, "marker": marker}


def style(method: str) -> Style:
    """Returns color, line and marker of a method, the same in every figure.

    >>> style("student")["color"], style("kd") != style("crd")
    ('#000000', True)
    """
    if method == "student":
        return {"color": ALONE, "linestyle": "-", "marker": "o"}
    return numbered((list(METHODS).index(method) if method in METHODS else len(METHODS)) - 1)


def band(axes: Any, x: Any, seeds: Any, style: Style, alpha: float = 0.18, **options: Any) -> np.ndarray:
    """Draws the mean over seeds with its 95% interval as a band; returns the mean."""
    seeds = np.asarray(seeds, np.float64)
    mean: np.ndarray = seeds.mean(axis=0)
    axes.plot(x, mean, **style, **{"markersize": 4, "markevery": max(len(mean) // 8, 1), **options})
    if len(seeds) > 1:
        half = np.array([interval(column).half for column in seeds.T])
        axes.fill_between(x, mean - half, mean + half, color=style["color"], alpha=alpha, linewidth=0)
    return mean


def gain(axes: Any, row: float, mean: float, half: float | None, style: Style) -> str:
    """Draws a gain with its interval in a row of the axes; returns it as text."""
    axes.errorbar(mean, row, xerr=half, fmt=style["marker"], color=style["color"], capsize=4, markersize=6)
    return f"{mean:+z.2f} " + ("(n = 1)" if half is None else f"± {half:.2f}")


def rows(axes: Any, labels: Sequence[str], texts: Sequence[str] | None = None) -> None:
    """Labels the rows of gains from the top, with texts at the right, and marks 0."""
    axes.axvline(0, color=ALONE, linewidth=1)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(max(len(labels), 1) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    if texts is not None:
        beside = axes.secondary_yaxis("right")
        beside.set_yticks(range(len(labels)), texts)
        beside.tick_params(length=0)
        beside.spines["right"].set_visible(False)


# Figures of a pair, from `statistics.of_pair` with its ``teacher``.


def pair_learning(title: str, found: Mapping[str, Any]) -> bytes:
    """Draws test accuracy by epoch: the whole training, and its last quarter."""
    methods = found["methods"]
    with figure(1, 2, 12.0, 5.2) as (made, (whole, end), save):
        ends = []
        for name, one in methods.items():
            epochs, seeds = np.array(one["curve"]["epoch"]), _percent(one["curve"].get("test/accuracy", []))
            if not len(seeds):
                continue
            every = (list(METHODS).index(name) if name in METHODS else 0) % 4, max(len(epochs) // 8, 1)
            options = {"label": TITLES.get(name, name), "markevery": every, "alpha": min(0.18, 0.8 / len(methods))}
            ends.append((epochs, band(whole, epochs, seeds, style(name), **options)))
            band(end, epochs, seeds, style(name), **options, markersize=5)
        last = max((x[-1] for x, _ in ends), default=0)
        seen = np.concatenate([[], *(y[x >= 0.75 * last] for x, y in ends)])
        if len(seen := seen[np.isfinite(seen)]):
            room = max(0.08 * np.ptp(seen), 0.2)
            end.set(xlim=(0.74 * last, 1.01 * last), ylim=(seen.min() - room, seen.max() + room))
        if (teacher := found["teacher"]) and teacher["last"] is not None:
            whole.axhline(100 * teacher["last"], color=ALONE, linestyle=":", linewidth=1, label="teacher")
        for axes, subtitle in ((whole, "Whole training"), (end, "Last quarter")):
            axes.set(xlabel="epoch", ylabel="test accuracy (%)", title=subtitle)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(axis="y", alpha=0.3)
        made.suptitle(title)
        # The legend has the order in which the lines end; the teacher's, which is level, is last.
        order = sorted(range(len(ends)), key=lambda i: -np.nan_to_num(ends[i][1][-1]))
        handles, labels = whole.get_legend_handles_labels()
        order += range(len(ends), len(handles))
        named = [handles[i] for i in order], [labels[i] for i in order]
        made.legend(*named, loc="outside right center", frameon=False, fontsize=9, handlelength=3.2)
        return save()


def pair_gains(title: str, found: Mapping[str, Any], published: Callable[[str], float | None]) -> bytes:
    """Draws the gain of each method over the student alone, and the published gain."""
    methods = {name: one for name, one in found["methods"].items() if name != "student"}
    papers = {name: paper for name in methods if (paper := published(name)) is not None}
    hollow: Any = {"mfc": "none", "mec": ALONE, "ms": 9, "mew": 1.2}
    with figure(1, 1, 9.0, 2.0 + 0.36 * max(len(methods), 2)) as (_, axes, save):
        texts = [""] * len(methods)
        for i, (name, one) in enumerate(methods.items()):
            if name in papers:
                axes.plot(papers[name], i, "o", zorder=1, **hollow)
            mean, half = _points(one["gain"]["last"].get("student"))
            if mean is not None:
                texts[i] = gain(axes, i, mean, half, style(name))
        if papers:
            axes.plot([], [], "o", label="published (240 epochs, all images)", **hollow)
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=9)
        rows(axes, [TITLES.get(name, name) for name in methods], texts)
        axes.margins(x=0.08)
        axes.set_title(f"{title}: gain over the student alone, last epoch, 95% interval", pad=26 if papers else None)
        axes.set_xlabel("points of test accuracy")
        return save()


def pair_agreement(title: str, found: Mapping[str, Any]) -> bytes:
    """Draws accuracy against the agreement with the teacher, a point for each method."""
    with figure(1, 1, 8.6, 5.4) as (made, axes, save):
        for name, one in found["methods"].items():
            (x, x_half), (y, y_half), kind = _points(one["agreement"]), _points(one["last"]), style(name)
            if x is not None and y is not None:
                mark = {"fmt": kind["marker"], "color": kind["color"], "ms": 8, "elinewidth": 0.6}
                face = kind["color"] if kind["linestyle"] == "-" else "white"
                axes.errorbar(x, y, xerr=x_half, yerr=y_half, mfc=face, label=TITLES.get(name, name), **mark)
        if (teacher := found["teacher"]) and teacher["last"] is not None:
            axes.axhline(100 * teacher["last"], color=ALONE, linestyle=":", label="teacher")
        axes.margins(0.08)
        axes.set(xlabel="agreement with the teacher (%)", ylabel="test accuracy (%)")
        axes.set_title(f"{title}: last epoch, 95% intervals")
        axes.grid(alpha=0.3)
        made.legend(loc="outside right center", frameon=False, fontsize=9)
        return save()


def pair_reliability(title: str, found: Mapping[str, Any]) -> bytes:
    """Draws accuracy by confidence of all seeds together, a panel for each method."""
    panels = ({"teacher": found["teacher"]} if found["teacher"] else {}) | found["methods"]
    lines = -(-len(panels) // PANELS)
    with figure(lines, PANELS, 12.0, 0.6 + 2.5 * lines, sharex=True, sharey=True) as (made, grid, save):
        flat = np.ravel(grid)
        for axes, (name, one) in zip(flat, panels.items(), strict=False):
            bins = {key: np.array(values, np.float64) for key, values in one["reliability"].items()}
            filled, count = bins["count"] > 0, len(bins["count"])
            centers = (np.arange(count) + 0.5) / count
            share = bins["count"] / max(bins["count"].sum(), 1)
            color = ALONE if name == "teacher" else style(name)["color"]
            axes.bar(centers[filled], bins["accuracy"][filled], 1 / count, color=color, alpha=0.55, edgecolor="white")
            axes.plot(bins["confidence"][filled], bins["accuracy"][filled], ".", color=ALONE, markersize=4)
            axes.plot([0, 1], [0, 1], color=ALONE, linestyle=":", linewidth=1)
            axes.stairs(share, np.linspace(0, 1, count + 1), color=ALONE, linewidth=0.7, alpha=0.6)
            error = one["calibration_error"] if name == "teacher" else (one["calibration_error"] or {}).get("mean")
            axes.set_title(TITLES.get(name, name) + ("" if error is None else f"  {100 * error:.1f}"), fontsize=10)
            axes.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        for axes in flat[len(panels) :]:
            axes.set_axis_off()
        made.supxlabel("confidence", fontsize=10)
        made.supylabel("accuracy", fontsize=10)
        made.suptitle(f"{title}: reliability and calibration error (%); thin line: share of the images", fontsize=11)
        return save()


def _points(summary: Mapping[str, Any] | None) -> tuple[float | None, float | None]:
    """Returns the mean of a summary and the half width of its interval in per cent, None where there is none."""
    mean, half = (summary["mean"], summary["half"]) if summary else (None, None)
    return None if mean is None else 100 * mean, None if half is None else 100 * half


def _percent(seeds: Sequence[Sequence[float | None]]) -> np.ndarray:
    return 100 * np.array([[np.nan if v is None else v for v in seed] for seed in seeds], np.float64)
