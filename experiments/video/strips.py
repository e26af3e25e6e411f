"""Figures of streams: precision against the teacher's calls, and film strips with boxes."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import patches
from matplotlib import pyplot as plt

from experiments.kit import plots

ROWS = {"every_8": "every 8th frame", "lstm": "LSTM", "oracle": "every frame"}  # adapted students that a strip shows
TRUTH, FOUND = "#F0E442", "#D55E00"


def places(clips: np.ndarray, count: int) -> list[int]:
    """Returns places of frames, evenly spaced over the clip in the middle of a stream.

    >>> places(np.array([7, 7, 3, 3, 3, 3, 3, 9]), 3)
    [2, 4, 6]
    """
    own = np.flatnonzero(clips == clips[len(clips) // 2])
    return [int(own[i]) for i in np.unique(np.linspace(0, len(own) - 1, count).round().astype(int))]


def boxes(found: np.ndarray, included: np.ndarray) -> list[list[float]]:
    """Returns the included boxes, as JSON holds them."""
    return np.asarray(found)[np.asarray(included)].round(1).tolist()


def encoded(image: np.ndarray) -> str:
    """Returns an image as the text of a PNG."""
    with io.BytesIO() as file:
        plt.imsave(file, image, format="png")
        return base64.b64encode(file.getvalue()).decode()


def decoded(text: str) -> np.ndarray:
    """Inverts `encoded`, with numbers from 0 to 1."""
    return np.asarray(plt.imread(io.BytesIO(base64.b64decode(text))))[..., :3]


def strip(results: Mapping[str, Any]) -> bytes:
    """Draws the film strip of the first seed."""
    shown = {name: row.get("shown", {}).get("strip") for name, row in results["rows"].items()}
    alone = shown.get("student") or {"images": [], "truth": [], "teacher": [], "": []}
    rows: dict[str, Sequence[Any]] = {"truth": alone["truth"], "teacher": alone["teacher"], "frozen": alone[""]}
    rows |= {title: shown[name][""] for name, title in ROWS.items() if shown.get(name)}
    columns = max(len(alone["images"]), 1)
    with plots.figure(len(rows), columns, 1.7 * columns + 1.0, 1.35 * len(rows), squeeze=False) as (_, grid, save):
        for line, (title, found) in zip(grid, rows.items(), strict=True):
            line[0].text(-0.06, 0.5, title, transform=line[0].transAxes, ha="right", va="center", fontsize=9)
            for axes in line:
                axes.set_axis_off()
            for axes, image, here in zip(line, alone["images"], found, strict=False):
                axes.imshow(decoded(image))
                for x0, y0, x1, y1 in here:
                    color = TRUTH if title == "truth" else FOUND
                    axes.add_patch(
                        patches.Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color=color, linewidth=1.4)
                    )
        return save()


def calls(results: Mapping[str, Any]) -> bytes:
    """Draws the average precision of each method against its share of key frames."""
    with plots.figure(1, 1, 6.4, 4.2) as (_, axes, save):
        for number, row in enumerate(results["rows"].values()):
            asked, reached = (row["measures"].get(name) for name in ("calls", "ap"))
            if not asked or not reached or reached["mean"] is None:
                continue
            style = {**plots.numbered(number), "linestyle": "none"}
            half = 100 * (reached["half"] or 0)
            axes.errorbar(100 * asked["mean"], 100 * reached["mean"], yerr=half, label=row["title"], capsize=2, **style)
        if teacher := results["references"].get("teacher"):
            axes.axhline(100 * teacher["ap"], color="#7F7F7F", linestyle=":", label="teacher")
        axes.set_xscale("symlog", linthresh=5)
        axes.set_xlim(left=-0.5)
        axes.set_xlabel("frames for which the teacher is asked (%)")
        axes.set_ylabel("AP (%)")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
        return save()
