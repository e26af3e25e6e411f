"""Sets of images with boxes, in memory, and anchors that fit their boxes."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.kit.recipe import Transform
from jaxkd import data, dense
from jaxkd.data import dense as dense_data
from jaxkd.types import Batch

PIXELS = (
    120 * 160
)  # of an image: images of several sizes, and much larger or smaller ones, are resized to about as many
MOST = {"train": 4000, "validation": 200, "test": 1000}  # images of a split; of larger ones, a random part
HELD_OUT = 0.15  # share of the training images that is held out where the set has no other split for it
MULTIPLE = 8  # of both sides of resized images
PER_LEVEL = 2  # sizes of the anchors of a level
RATIOS = (0.6, 1.0, 1.6)  # heights over widths

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Boxes:
    """A set of images with boxes."""

    name: str  # name of the set
    class_names: tuple[str, ...]  # of the objects
    splits: Mapping[str, Arrays]  # train, validation and test
    mean: tuple[float, ...]  # of each channel of the training images, from 0 to 1
    std: tuple[float, ...]  # their standard deviations

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self.splits["train"]["image"].shape[1:3]
        return int(height), int(width)

    @property
    def most(self) -> int:
        """Number of boxes of an image, with padding."""
        return int(self.splits["train"]["boxes"].shape[1])

    def normalize(self, batch: Batch) -> dict[str, Any]:
        """Returns a batch with normalized images."""
        return data.normalize(batch, mean=self.mean, std=self.std)

    def moved(self, seed: int) -> Transform:
        """Returns the augmentation of stored images: mirrored, scaled and shifted, with their boxes."""
        fill = tuple(round(255 * value) for value in self.mean)
        return lambda batch: dense_data.random_affine(batch, seed=seed, scale=(0.8, 1.25), shift=0.1, fill=fill)

    def loader(self, split: str, batch: int) -> data.Resident:
        """Returns a split in its own order, to evaluate on."""
        arrays = self.splits[split]
        return data.Resident(arrays, min(batch, len(arrays["image"])), shuffle=False)

    def anchors(self, strides: Sequence[int]) -> np.ndarray:
        """Returns anchors ``[n, 4]`` whose sizes are spread over those of the training boxes."""
        sizes = anchor_sizes(self.splits["train"], len(strides))
        return np.asarray(dense.anchors(self.size, strides, sizes, RATIOS))


def anchor_sizes(arrays: Arrays, levels: int) -> list[list[float]]:
    """Returns the sides of the square anchors of each level, in equal ratios from small to large boxes.

    >>> boxes = np.array([[[0, 0, 8, 8], [0, 0, 64, 64]]])
    >>> anchor_sizes({"boxes": boxes, "box_mask": np.ones((1, 2), bool)}, 2)
    [[8.0, 16.0], [32.0, 64.0]]
    """
    sides = (arrays["boxes"][..., 2:] - arrays["boxes"][..., :2])[arrays["box_mask"]]
    low, high = np.quantile(np.sqrt(sides.prod(axis=-1)), (0.05, 0.95), method="nearest")
    spread = np.geomspace(max(low, 2.0), max(high, 2.0), PER_LEVEL * levels)
    return np.round(spread, 2).reshape(levels, PER_LEVEL).tolist()  # type: ignore[no-any-return]


def read(config: Any, name: str) -> Boxes:
    """Returns a set with boxes and its splits, from ``--data-dir``: ``--dataset``, or else the set of a name."""
    if config.data_dir is None:
        raise ValueError("--data-dir: expected the folder of prepared TFDS sets.")
    name = config.dataset or name
    rows = _splits(name, config.data_dir)
    for split, examples in rows.items():
        if not examples or "objects" not in examples[0]:
            found = "no images" if not examples else f"the features {sorted(examples[0])}"
            raise ValueError(f"{name}, {split}: expected images with the feature 'objects' (bbox, label), got {found}.")
    every = [row for examples in rows.values() for row in examples]
    most = max(1, *(len(row["objects"]["bbox"]) for row in every))
    size = image_size([row["image"].shape[:2] for row in every])
    splits = {split: dense_data.arrays(examples, max_boxes=most, size=size) for split, examples in rows.items()}
    for split in ("train", "test"):
        if not splits[split]["box_mask"].any():
            raise ValueError(f"{name}, {split}: expected objects in some images, got none.")
    pixels = splits["train"]["image"].reshape(-1, splits["train"]["image"].shape[-1])
    mean, std = ([float(value) / 255 for value in getattr(pixels, of)(axis=0)] for of in ("mean", "std"))
    classes = 1 + max(int(part["box_label"].max()) for part in splits.values())
    names = _class_names(name, config.data_dir) or [str(number) for number in range(classes)]
    std = [max(value, 1e-3) for value in std]
    return Boxes(name, tuple(names), splits, tuple(mean), tuple(std))


def image_size(shapes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """Returns the height and width to which images are resized; None for those of one size that is near the usual.

    >>> image_size([(120, 160)] * 2), image_size([(480, 640), (600, 800)])
    (None, (120, 160))
    """
    if len({tuple(shape) for shape in shapes}) == 1 and 0.25 * PIXELS <= np.prod(shapes[0]) <= 1.25 * PIXELS:
        return None
    ratio = float(np.median([height / width for height, width in shapes]))
    sides = (PIXELS * ratio) ** 0.5, (PIXELS / ratio) ** 0.5
    height, width = (max(MULTIPLE, MULTIPLE * round(side / MULTIPLE)) for side in sides)
    return height, width


def _splits(name: str, data_dir: Any) -> dict[str, list[Any]]:
    """Returns the examples of train, validation and test; a split that the set lacks is made from another."""
    found = {"train": _some(data.source(name, "train", data_dir), "train")}
    for split in ("validation", "test"):
        try:
            found[split] = _some(data.source(name, split, data_dir), split)
        except ValueError as error:
            if "no split" not in str(error):
                raise
    if "test" not in found and "validation" in found:
        found["test"] = found.pop("validation")
    for split in ("test", "validation"):
        if split not in found:
            count = max(1, min(MOST[split], round(HELD_OUT * len(found["train"]))))
            order = np.random.default_rng(0).permutation(len(found["train"]))
            found[split] = [found["train"][i] for i in sorted(order[:count])]
            found["train"] = [found["train"][i] for i in sorted(order[count:])]
    return found


def _some(source: Any, split: str) -> list[Any]:
    """Returns the examples of a split, or a random part of many."""
    places = np.arange(len(source))
    if len(places) > MOST[split]:
        places = np.sort(np.random.default_rng(0).permutation(len(places))[: MOST[split]])
    return [source[int(place)] for place in places]


def _class_names(name: str, data_dir: Any) -> list[str]:
    """Returns the names of the objects' classes, which TFDS writes beside a set; none where it has none."""
    paths = {str(entry): entry.path for entry in data.prepared(data_dir)}
    file = pathlib.Path(paths.get(data.source(name, "train", data_dir).name, ".")) / "objects-label.labels.txt"
    return file.read_text().split("\n")[:-1] if file.exists() else []
