"""Figures: boxes on images, and AP of each class."""

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.patches import Rectangle

from experiments.kit import plots
from jaxkd.types import TrainState

IMAGES = 4  # images of the test split that are shown
SHOWN = 0.4  # least score of a shown box
ALONE, TEACHER, TRUTH = "student", "teacher", "truth"


def shown(work: Any, method: str, state: TrainState) -> dict[str, Any]:
    """Returns the boxes that a student finds in some images; beside the student alone, also those, as JSON has them."""
    found: dict[str, Any] = {"boxes": _boxes(work.found(work.student, state.student, "test", IMAGES))}
    if method == ALONE:
        arrays = {name: value[:IMAGES] for name, value in work.boxes.splits["test"].items()}
        image = np.ascontiguousarray(arrays["image"])
        packed = base64.b85encode(zlib.compress(image.tobytes(), 9)).decode()
        true = {"boxes": arrays["boxes"], "labels": arrays["box_label"], "mask": arrays["box_mask"]}
        found |= {
            TRUTH: _boxes({**true, "scores": np.ones(true["labels"].shape)}),
            TEACHER: _boxes(work.found(work.teacher, work.taught, "test", IMAGES)),
            "image": {"shape": list(image.shape), "packed": packed},
            "classes": list(work.boxes.class_names),
        }
    return found


def _boxes(found: Mapping[str, np.ndarray]) -> list[list[dict[str, Any]]]:
    """Returns the boxes of each image, with class and score, as lists."""
    rows = []
    for boxes, scores, labels, mask in zip(*(found[k] for k in ("boxes", "scores", "labels", "mask")), strict=True):
        kept = mask & (scores >= SHOWN)
        rows.append(
            [
                {"box": np.round(box, 1).tolist(), "class": int(label), "score": round(float(score), 2)}
                for box, score, label in zip(boxes[kept], scores[kept], labels[kept], strict=True)
            ]
        )
    return rows


def detections(results: Mapping[str, Any]) -> bytes:
    """Draws true boxes, those of the teacher, of the student alone and of the best distilled one."""
    rows = results["rows"]
    first = rows.get(ALONE, {}).get("shown", {}).get("detections")
    if not first:
        return _nothing()
    shape, packed = (first["image"][key] for key in ("shape", "packed"))
    images = np.frombuffer(zlib.decompress(base64.b85decode(packed)), np.uint8).reshape(shape)
    columns = {TRUTH: first[TRUTH], TEACHER: first[TEACHER], rows[ALONE]["title"]: first["boxes"]}
    if best := best_method(results):
        columns[rows[best]["title"]] = rows[best]["shown"]["detections"]["boxes"]
    height = 2.4 * shape[1] / shape[2] * len(images) + 0.4
    with plots.figure(len(images), len(columns), 2.4 * len(columns), height, squeeze=False) as (figure, axes, save):
        for column, (title, boxes) in enumerate(columns.items()):
            axes[0, column].set_title(title)
            for row, image in enumerate(images):
                panel = axes[row, column]
                panel.imshow(
                    image.squeeze(), cmap="gray" if shape[-1] == 1 else None, extent=(0, shape[2], shape[1], 0)
                )
                panel.set(xticks=[], yticks=[], xlim=(0, shape[2]), ylim=(shape[1], 0))
                for one in boxes[row]:
                    x0, y0, x1, y1 = one["box"]
                    color = plots.COLORS[one["class"] % len(plots.COLORS)]
                    panel.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=color, linewidth=1.2))
        for number, name in enumerate(first["classes"][: len(plots.COLORS)]):
            axes[0, 0].plot([], [], color=plots.COLORS[number], label=name)
        figure.legend(loc="outside lower center", ncols=min(len(first["classes"]), len(plots.COLORS)), frameon=False)
        return save()


def best_method(results: Mapping[str, Any]) -> str | None:
    """Returns the distilled method with the largest AP whose boxes are there."""
    usable = {
        name: row["measures"]["ap"]["mean"]
        for name, row in results["rows"].items()
        if not name.startswith(ALONE) and row["shown"].get("detections") and row["measures"]["ap"]["mean"] is not None
    }
    return max(usable, key=lambda name: usable[name]) if usable else None


def classes(results: Mapping[str, Any]) -> bytes:
    """Draws the AP of each class, of each method and of the teacher."""
    found = {row["title"]: _of_classes(row["measures"]) for name, row in results["rows"].items() if "@" not in name}
    if TEACHER in results["references"]:
        found[TEACHER] = _of_classes(results["references"][TEACHER])
    names = sorted({name for values in found.values() for name in values})
    if not names:
        return _nothing()
    with plots.figure(1, 1, 9, 1.2 + 0.34 * len(found)) as (figure, axes, save):
        for number, name in enumerate(names[: len(plots.COLORS)]):
            values = [of.get(name, np.nan) for of in found.values()]
            axes.plot(
                100 * np.array(values),
                range(len(found)),
                color=plots.COLORS[number],
                label=name,
                marker="o",
                linestyle="",
            )
        plots.rows(axes, list(found))
        axes.set(xlabel="AP (%)")
        figure.legend(loc="outside upper right", frameon=False, ncols=4)
        return save()


def _of_classes(measures: Mapping[str, Any]) -> dict[str, float]:
    """Returns the AP by class, from summaries over the seeds or from numbers."""
    means = {k: v["mean"] if isinstance(v, Mapping) else v for k, v in measures.items() if k.startswith("ap/")}
    return {name.removeprefix("ap/"): float(value) for name, value in means.items() if value is not None}


def _nothing() -> bytes:
    with plots.figure(1, 1, 4, 1) as (_, axes, save):
        axes.axis("off")
        return save()
