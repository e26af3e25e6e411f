"""The figure of the study: the gain of each method against the cost of its step."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.kit import plots

TITLES = {"response": "Response", "features": "Features", "relations": "Relations"}


def draw(results: Mapping[str, Any]) -> bytes:
    """Draws a panel for each group, with the methods' names in its margin."""
    every = [one for one in results["rows"].values() if one["gain"] and one["gain"]["chosen"]["half"] is not None]
    with plots.figure(1, len(TITLES), 15.0, 7.6, sharey=True) as (made, panels, save):
        for panel, (group, title) in zip(panels, TITLES.items(), strict=True):
            found = sorted(
                (one for one in every if one["group"] == group), key=lambda one: one["gain"]["chosen"]["mean"]
            )
            _panel(panel, found, title)
        panels[0].set_ylabel("gain over the student alone (points), 95% interval; value chosen on validation")
        made.supxlabel("FLOPs of a step over those of the student alone, the teacher's outputs cached", fontsize=10)
        return save()


def _panel(axes: Any, found: Sequence[Mapping[str, Any]], title: str) -> None:
    axes.set(title=title, xscale="log")
    axes.axhline(0, color=plots.ALONE, linewidth=1)
    axes.grid(axis="y", alpha=0.3)
    costs = np.array([one["cost"]["cached"] for one in found] or [1.0])
    gains = [100 * one["gain"]["chosen"]["mean"] for one in found]
    near = costs.max() < 1.5
    low, high = (0.985, 1.02 * costs.max()) if near else (0.85, 1.25 * costs.max())
    begin = high * (high / low) ** 0.08
    axes.set_xlim(low, begin * (high / low) ** 0.75)
    ticks = [tick for tick in ((1, 1.05, 1.1, 1.2, 1.4) if near else (1, 2, 5, 10, 20, 50, 100)) if tick <= high]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    for i, (one, x, y, place) in enumerate(zip(found, costs, gains, spaced(gains, 0.85), strict=False)):
        color = plots.COLORS[i % len(plots.COLORS)]
        axes.errorbar(
            x, y, yerr=100 * one["gain"]["chosen"]["half"], fmt="o", color=color, capsize=2, ms=5, elinewidth=0.8
        )
        axes.plot([x, begin], [y, place], color=color, linewidth=0.5, alpha=0.6)
        label = {"va": "center", "fontsize": 8.5, "color": color, "bbox": {"fc": "white", "ec": "none", "pad": 0.6}}
        axes.text(begin, place, f" {one['title']} {y:+z.1f}", **label)


def spaced(places: Sequence[float], least: float) -> list[float]:
    """Returns rising places, moved as little as they must be to lie apart.

    >>> spaced([0.0, 0.0, 3.0], 1.0)
    [-0.5, 0.5, 3.0]
    """
    groups: list[tuple[float, int]] = []  # the middle and the number of neighbors that touch
    for place in places:
        middle, count = float(place), 1
        while groups and middle - (count - 1) * least / 2 < groups[-1][0] + (groups[-1][1] + 1) * least / 2:
            other, number = groups.pop()
            middle, count = (middle * count + other * number) / (count + number), count + number
        groups.append((middle, count))
    return [middle + (i - (count - 1) / 2) * least for middle, count in groups for i in range(count)]
