"""Figures of poses: skeletons side by side, a film strip, joints one by one."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.kit import plots

LEFT, RIGHT, MIDDLE = plots.COLORS[4], plots.COLORS[1], "#FFFFFF"


def scene(
    images: np.ndarray, true: np.ndarray, visible: np.ndarray, teacher: np.ndarray, people: Any
) -> dict[str, Any]:
    """Returns, as JSON holds it, what every panel of a figure shares: images, true joints and a teacher's."""
    return {
        "images": base64.b64encode(np.ascontiguousarray(images, np.uint8).tobytes()).decode(),
        "shape": list(images.shape),
        "true": points(true),
        "visible": visible.tolist(),
        "teacher": points(teacher),
        "joints": list(people.joints),
        "bones": [list(bone) for bone in people.bones],
    }


def points(found: np.ndarray) -> list[Any]:
    """Returns points as JSON holds them.

    >>> points(np.array([[0.04, 1.26]]))
    [[0.0, 1.3]]
    """
    rounded: list[Any] = np.round(np.asarray(found, np.float64), 1).tolist()
    return rounded


def side_by_side(name: str, results: Mapping[str, Any]) -> bytes:
    """Draws a row for each image, and beside it the truth, the teacher and each student."""
    return _grid(name, results, across=True)


def film(name: str, results: Mapping[str, Any]) -> bytes:
    """Draws the frames of a clip from left to right, a strip for the truth, the teacher and each student."""
    return _grid(name, results, across=False)


def _grid(name: str, results: Mapping[str, Any], *, across: bool) -> bytes:
    shown = {one["title"]: one["shown"][name] for one in results["rows"].values() if one.get("shown", {}).get(name)}
    first = next((one for one in shown.values() if "images" in one), None)
    if first is None:
        with plots.figure(1, 1, 4.0, 1.0) as (_, axes, save):
            axes.set_axis_off()
            return save()
    images = np.frombuffer(base64.b64decode(first["images"]), np.uint8).reshape(first["shape"])
    everything = {"truth": first["true"], "teacher": first["teacher"]} | {k: one["points"] for k, one in shown.items()}
    visible = np.array(first["visible"])
    shape = (len(images), len(everything)) if across else (len(everything), len(images))
    with plots.figure(*shape, 1.5 * shape[1] + 0.4, 1.5 * shape[0] + 0.7, squeeze=False) as (_, grid, save):
        for number, (title, found) in enumerate(everything.items()):
            for i, image in enumerate(images):
                axes = grid[i, number] if across else grid[number, i]
                _skeleton(axes, image, np.array(found[i]), visible[i], first)
                if across and i == 0:
                    axes.set_title(_wrapped(title), fontsize=8)
                elif not across and i == 0:
                    axes.set_ylabel(_wrapped(title), fontsize=8)
        return save()


def _skeleton(axes: Any, image: np.ndarray, found: np.ndarray, visible: np.ndarray, first: Mapping[str, Any]) -> None:
    """Draws the visible joints and the bones between them: left, right and middle each in a color."""
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0))
    colors = [LEFT if "left" in joint else RIGHT if "right" in joint else MIDDLE for joint in first["joints"]]
    for a, b in first["bones"]:
        if visible[a] and visible[b]:
            axes.plot(*found[[a, b]].T, color=colors[b], linewidth=1.4)
    axes.scatter(*found[visible].T, s=5, c=np.array(colors)[visible], edgecolors="black", linewidths=0.3, zorder=3)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=(), yticks=())


def _wrapped(title: str) -> str:
    """Returns a title of several short lines.

    >>> _wrapped("heatmaps + features + structure")
    'heatmaps +\\nfeatures +\\nstructure'
    """
    lines = [""]
    for word in title.split():
        if len(lines[-1]) + len(word) > 14:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(line for line in lines if line)


def joints(results: Mapping[str, Any], prefix: str = "pck/", chosen: Sequence[str] = ()) -> bytes:
    """Draws the share of found joints by joint, a line of points for the teacher and each student."""
    rows = {name: one for name, one in results["rows"].items() if "@" not in name and (not chosen or name in chosen)}
    found = {one["title"]: {k: v["mean"] for k, v in one["measures"].items()} for one in rows.values()}
    found = {name: dict(values) for name, values in results["references"].items()} | found
    known = [key for key in next(iter(found.values()), {}) if key.startswith(prefix)]
    with plots.figure(1, 1, 10.0, 4.6) as (figure, axes, save):
        for number, (title, values) in enumerate(found.items()):
            share = [100 * values[key] if values.get(key) is not None else np.nan for key in known]
            style = plots.numbered(number) | {"linestyle": "", "markersize": 5}
            axes.plot(range(len(known)), share, label=title, **style)
        axes.set_xticks(range(len(known)), [key.removeprefix(prefix) for key in known], rotation=40, ha="right")
        axes.set(ylabel="found joints (%)")
        axes.grid(axis="y", alpha=0.3)
        if known:
            figure.legend(loc="outside right center", frameon=False, fontsize=9)
        return save()
