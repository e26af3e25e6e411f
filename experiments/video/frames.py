"""Frames of clips with boxes, in order, and detectors that are trained on single frames."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.kit import inputs
from experiments.kit.recipe import Transform
from experiments.kit.tasks import networks
from jaxkd import adapters, data, dense, losses, models, teachers, wrappers
from jaxkd.types import Array, Batch, Model, Objective, Outputs, Variables

SET = "jhmdb_video"
PIXELS = 120 * 160  # larger images are made smaller
LONGEST = 6000  # frames of a split; of more, the first ones
STRIDES = (8, 16, 32)
RATIOS = 3  # anchors of a position
LEAST_BOXES = 4
BATCH = 16
LEAST_SCORE, MOST = 0.05, 10  # of detections: least score, and number in a frame of few objects
FOCUS, BALANCE = 2.0, 0.25  # γ and α of the focal loss

Arrays = Mapping[str, np.ndarray]


class Frames(NamedTuple):
    """A set of clips: its frames in order, and what its training split says."""

    train: dict[str, np.ndarray]  # by clip and frame
    test: dict[str, np.ndarray]
    size: tuple[int, int]  # height and width of the images
    classes: int  # number of classes of objects
    anchors: Array  # boxes [n, 4]
    normalize: Transform  # transform of stored images


def read(config: Any) -> Frames:
    """Returns a set with boxes, ``clip`` and ``frame``, from ``--data-dir``."""
    name = config.dataset or SET
    if config.data_dir is None:
        raise ValueError(f"--data-dir: expected the folder of prepared TFDS sets, with {name}.")
    rows = _rows(name, config.data_dir)
    height, width = np.shape(rows["train"][0]["image"])[:2]
    shrunk = min(1.0, (PIXELS / (height * width)) ** 0.5)
    size = (round(shrunk * height), round(shrunk * width))
    most = max(
        [LEAST_BOXES, *(len(row["objects"]["bbox"]) for part in rows.values() for row in part if "objects" in row)]
    )
    train, test = (
        in_order(data.dense.arrays(part, max_boxes=most, size=size), f"{name}, {split}") for split, part in rows.items()
    )
    classes = 1 + max(int(part["box_label"].max()) for part in (train, test))
    some = train["image"][:: -(-len(train["image"]) // 256)]
    pixels = some.reshape(-1, some.shape[-1]) / 255
    statistics: dict[str, Any] = {
        "mean": tuple(pixels.mean(axis=0).tolist()),
        "std": tuple((pixels.std(axis=0) + 1e-3).tolist()),
    }
    normalize = functools.partial(data.normalize, **statistics)
    return Frames(train, test, size, classes, usual_anchors(train, size), normalize)


def _rows(name: str, data_dir: Any) -> dict[str, list[Any]]:
    """Returns the frames of ``train`` and ``test``; without a split to test on, of a third of the training clips."""
    found = {}
    for split in ("train", "validation", "test"):
        try:
            source = data.source(name, split, data_dir)
        except ValueError as error:
            if split == "train" or "no split" not in str(error):
                raise
            continue
        found["test" if split == "validation" else split] = list(
            inputs.numbered([source[i] for i in range(min(len(source), LONGEST))], "clip")
        )
    if "test" not in found:
        clips = sorted({int(row["clip"]) for row in found["train"] if "clip" in row})
        held = set(clips[::3])
        found["test"] = [row for row in found["train"] if int(row.get("clip", -1)) in held] or found["train"]
        found["train"] = [row for row in found["train"] if int(row.get("clip", -1)) not in held]
    if empty := [split for split, rows in found.items() if not rows]:
        raise ValueError(f"{name}: expected frames of several clips, got none for {empty}.")
    return found


def in_order(arrays: Arrays, name: str) -> dict[str, np.ndarray]:
    """Returns frames by clip and frame, with their places as ``index``."""
    if missing := sorted({"boxes", "clip", "frame"} - arrays.keys()):
        raise ValueError(
            f"{name}: expected a set with objects, clip and frame, got {sorted(arrays)} without {missing}. The numbers "
            "of clips and frames order the stream."
        )
    return taken(arrays, np.lexsort((arrays["frame"], arrays["clip"])))


def taken(arrays: Arrays, order: np.ndarray) -> dict[str, np.ndarray]:
    """Returns some frames, in an order."""
    names = ("image", "boxes", "box_label", "box_mask", "clip", "frame")
    return {name: arrays[name][order] for name in names} | {"index": np.arange(len(order), dtype=np.int32)}


def shuffled_clips(arrays: Arrays, seed: int, count: int | None = None) -> dict[str, np.ndarray]:
    """Returns whole clips in the order of a seed, each with its frames in their own; some first frames of them."""
    clips = np.random.default_rng(seed).permutation(np.unique(arrays["clip"]))
    order = np.concatenate([np.flatnonzero(arrays["clip"] == clip) for clip in clips])
    return taken(arrays, order[:count])


def usual_anchors(arrays: Arrays, size: tuple[int, int]) -> Array:
    """Returns anchors of the sizes and ratios that most boxes have."""
    boxes = arrays["boxes"][arrays["box_mask"]]
    if not len(boxes):
        raise ValueError("expected objects among the training frames, got none.")
    sides = boxes[:, 2:] - boxes[:, :2]
    at = (1 / 6, 1 / 2, 5 / 6)  # the middle of each third
    sizes = np.quantile(np.sqrt(sides.prod(axis=1)), at)
    ratios = np.quantile(sides[:, 1] / sides[:, 0], at)
    return dense.anchors(size, STRIDES, tuple(map(float, sizes)), tuple(map(float, ratios)))


def detector(frames: Frames, widths: Sequence[int], channels: int, blocks: int = 1) -> Model:
    """Returns a one-stage detector with its raw outputs and its logit of an object at each anchor."""
    module = models.Detector(
        frames.classes, RATIOS, form="sigmoid", widths=widths, channels=channels, blocks=blocks, stride=STRIDES[0]
    )

    def raw(outputs: Outputs) -> Array:
        return jnp.concatenate([outputs["logits"], outputs["offsets"]], axis=-1)

    return wrappers.with_outputs(
        adapters.linen(module), raw=raw, objectness=lambda outputs: jnp.max(outputs["logits"], axis=-1)
    )


def labeled(frames: Frames) -> Objective:
    """Returns the detector's own loss: a focal loss of the classes, and smooth L1 of the offsets."""

    def loss(logits: Array, offsets: Array, boxes: Array, labels: Array, exists: Array) -> Array:
        matches = dense.match_anchors(frames.anchors, boxes, box_where=exists)
        is_class = jax.nn.one_hot(dense.take_matched(labels, matches), frames.classes)
        on = matches.matched[..., None] * is_class
        off_by = jnp.abs(on - jax.nn.sigmoid(logits))
        focal = (
            off_by**FOCUS
            * jnp.where(on > 0, BALANCE, 1 - BALANCE)
            * losses.binary_cross_entropy(logits[..., None], on[..., None])
        )
        focal = jnp.where(matches.ignored[..., None], 0, focal)
        target = dense.encode_boxes(dense.take_matched(boxes, matches), frames.anchors)
        difference = jnp.where(matches.matched[..., None], offsets - target, 0)
        size = jnp.abs(difference)
        smooth = jnp.where(size < 1, 0.5 * difference**2, size - 0.5)
        count = jnp.maximum(jnp.sum(matches.matched, axis=1), 1)
        return (jnp.sum(focal, axis=(1, 2)) + jnp.sum(smooth, axis=(1, 2))) / count

    return jaxkd.term(loss, "student/logits", "student/offsets", "batch/boxes", "batch/box_label", "batch/box_mask")


def trained(path: pathlib.Path, frames: Frames, model: Model, arrays: Arrays, *, steps: int, seed: int) -> Variables:
    """Returns a detector's weights, trained once on single frames in any order and their boxes."""

    def prepare(batch: Batch) -> Batch:
        moved = data.dense.random_affine(batch, seed=seed, scale=(0.8, 1.25), shift=0.1)
        return frames.normalize(moved)

    kd = networks.distill(model, teachers.none(), labeled(frames), 2e-3, steps, lambda context: {})
    kd = jaxkd.distillers.preprocess(kd, train_transform=prepare)
    size = min(BATCH, len(arrays["index"]))
    train = data.Resident(dict(arrays), size, seed=seed, drop_remainder=True)
    return networks.trained_once(path, kd, train, {}, steps=steps, seed=seed)


def found(frames: Frames, outputs: Outputs) -> dense.Detections:
    """Returns the detections that a detector's outputs stand for."""
    return dense.detections(
        outputs["logits"],
        outputs["offsets"],
        frames.anchors,
        form="sigmoid",
        image_size=frames.size,
        least_score=LEAST_SCORE,
        considered=100,
        most=max(MOST, 2 * frames.train["boxes"].shape[1]),
    )
