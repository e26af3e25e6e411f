"""A figure of a string's spectrogram, and below it when each network writes which digit."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.kit import plots
from experiments.speech import sounds

COLUMNS = 2


def draw(results: Mapping[str, Any]) -> bytes:
    """Draws the posteriors of a test string, a panel for the teacher and each student."""
    shown = {
        one["title"]: one["shown"]["alignments"]
        for one in results["rows"].values()
        if one.get("shown", {}).get("alignments")
    }
    first = next((one for one in shown.values() if "features" in one), None)
    panels = ({"teacher": first["teacher"]} if first else {}) | {name: one["posteriors"] for name, one in shown.items()}
    count = max(len(panels), 1)
    lines = 1 + -(-count // COLUMNS)
    with plots.figure(lines, COLUMNS, 12.0, 1.0 + 1.5 * lines, sharex=True) as (figure, grid, save):
        for axes in grid[0]:
            if first:
                _spectrogram(axes, np.array(first["features"]))
                axes.set_title(f"“{first['spoken']}”", fontsize=10)
        for axes, (name, posteriors) in zip(grid[1:].reshape(-1), panels.items(), strict=False):
            _classes(axes, np.array(posteriors))
            axes.set_title(name, fontsize=10)
        for axes in grid[1:].reshape(-1)[len(panels) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("seconds")
        figure.supylabel("probability; spectrogram: band", fontsize=10)
        return save()


def _spectrogram(axes: Any, features: np.ndarray) -> None:
    extent = (0, len(features) * sounds.HOP, 0, features.shape[1])
    axes.imshow(features.T, origin="lower", aspect="auto", extent=extent, cmap="magma")


def _classes(axes: Any, posteriors: np.ndarray) -> None:
    """Draws the probability of the blank in gray, and of each digit that is likely somewhere with its name."""
    times = (np.arange(len(posteriors)) + 0.5) * 2 * sounds.HOP
    axes.fill_between(times, posteriors[:, 0], color="0.9", linewidth=0)
    for label in range(1, posteriors.shape[1]):
        peak = int(posteriors[:, label].argmax())
        if posteriors[peak, label] > 0.2:
            color = plots.COLORS[(label - 1) % len(plots.COLORS)]
            axes.plot(times, posteriors[:, label], color=color, linestyle=plots.LINES[(label - 1) // len(plots.COLORS)])
            axes.annotate(
                sounds.WORDS[label - 1],
                (times[peak], min(posteriors[peak, label], 1)),
                fontsize=8,
                color=color,
                ha="center",
                va="bottom",
            )
    axes.set(ylim=(0, 1.25), yticks=(0, 1))
