"""Figures: predictions beside the truth, and the intersection over union of each class."""

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.patches import Patch

from experiments.kit import plots
from experiments.segmentation.scenes import VOID

COLORMAP = "tab20"
VOID_COLOR = (0.0, 0.0, 0.0)


def packed(array: np.ndarray) -> dict[str, Any]:
    """Returns bytes of an array as JSON holds them.

    >>> unpacked(packed(np.array([[1, 255]], np.uint8))).tolist()
    [[1, 255]]
    """
    array = np.asarray(array, np.uint8)
    return {"shape": list(array.shape), "data": base64.b85encode(zlib.compress(array.tobytes(), 9)).decode()}


def unpacked(found: Mapping[str, Any]) -> np.ndarray:
    """Returns an array that `packed` wrote."""
    return np.frombuffer(zlib.decompress(base64.b85decode(found["data"])), np.uint8).reshape(found["shape"])


def colors(classes: int) -> np.ndarray:
    """Returns a color for each class, and black for all other labels, float ``[256, 3]``."""
    found = np.tile(VOID_COLOR, (256, 1))
    for number in range(min(classes, VOID)):
        found[number] = colormaps[COLORMAP]((2 * number) % 20 + (number // 10) % 2)[:3]
    return found


def masks(results: Mapping[str, Any]) -> bytes:
    """Draws test images, their truth, and the predictions of the teacher and of students, with the classes' colors."""
    shown = {
        one["title"]: one["shown"]["masks"] for one in results["rows"].values() if one.get("shown", {}).get("masks")
    }
    first = next((one for one in shown.values() if "image" in one), None)
    if first is None:
        with plots.figure(1, 1, 4, 1) as (_, axes, save):
            axes.set_axis_off()
            return save()
    paint = colors(len(first["classes"]))
    panels = {"image": unpacked(first["image"])}
    panels |= {name: paint[unpacked(first[name])] for name in ("truth", "teacher")}
    panels |= {name: paint[unpacked(one["predicted"])] for name, one in shown.items()}
    examples = len(panels["image"])
    height, width = panels["image"].shape[1:3]
    each = 1.75
    size = (each * len(panels), examples * (each * height / width + 0.05) + 0.9)
    with plots.figure(examples, len(panels), *size, squeeze=False) as (figure, grid, save):
        for column, (name, images) in enumerate(panels.items()):
            grid[0, column].set_title(name.replace(", ", ",\n"), fontsize=8)
            for row, image in enumerate(images):
                axes = grid[row, column]
                axes.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", interpolation="nearest")
                axes.set_axis_off()
        handles = [Patch(color=paint[i]) for i in range(len(first["classes"]))]
        handles.append(Patch(color=VOID_COLOR))
        names = [*first["classes"], "void"]
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 12), frameon=False, fontsize=8)
        return save()


def classes(results: Mapping[str, Any]) -> bytes:
    """Draws the intersection over union of each class as a table, a line for the teacher and each method."""
    lines: dict[str, Mapping[str, float]] = {}
    for name, one in results["references"].items():
        lines[name] = _of_classes(one)
    for one in results["rows"].values():
        lines[one["title"]] = _of_classes({key: found["mean"] for key, found in one["measures"].items() if found})
    names: Sequence[str] = _order(results, lines)
    values = np.array([[100 * line.get(name, np.nan) for name in names] for line in lines.values()], float)
    values = values.reshape(len(lines), len(names))
    with plots.figure(1, 1, 3 + 0.62 * max(len(names), 2), 1.2 + 0.3 * max(len(lines), 1)) as (_, axes, save):
        if values.size:
            axes.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
            for (row, column), value in np.ndenumerate(values):
                if np.isfinite(value):
                    tone = "white" if value < 60 else "black"
                    axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color=tone)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
        axes.set_yticks(range(len(lines)), list(lines), fontsize=8)
        axes.tick_params(length=0)
        axes.set_title("intersection over union of each class (%), mean over seeds", fontsize=9)
        return save()


def _of_classes(measures: Mapping[str, Any]) -> dict[str, float]:
    return {
        key.removeprefix("iou/"): value
        for key, value in measures.items()
        if key.startswith("iou/") and value is not None
    }


def _order(results: Mapping[str, Any], lines: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Returns the classes in their order, as far as it is known."""
    for one in results["rows"].values():
        if "classes" in one.get("shown", {}).get("masks", {}):
            return list(one["shown"]["masks"]["classes"])
    return list(dict.fromkeys(name for line in lines.values() for name in line))
