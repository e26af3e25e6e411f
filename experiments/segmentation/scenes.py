"""Images with a class for each pixel: any set with masks, at a small size, and how a student sees them."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxkd import data
from jaxkd.types import Batch

SET = "camvid"
SIDE = 80  # pixels of the longer side
MOST = 5000  # images of a split
VOID = 255
EVAL_BATCH = 50
# Geometry of training images: mirrored, enlarged or shrunk, rotated by degrees, shifted by a share of the sides.
MOVES: Mapping[str, Any] = {"flip": True, "scale": (0.8, 1.4), "rotation": 5.0, "shift": 0.1}

CLASS_NAMES = {
    "camvid": (
        *("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist"),
    )
}

Arrays = Mapping[str, np.ndarray]


class Scenes(NamedTuple):
    """A set of images with masks."""

    name: str  # name of the set
    splits: Mapping[str, dict[str, np.ndarray]]  # ``image`` and ``label`` of ``train``, ``validation`` and ``test``
    class_names: tuple[str, ...]  # name of each class, or its number
    mean: tuple[float, ...]  # of each channel of the training images, from 0 to 1
    std: tuple[float, ...]

    def loader(self, split: str) -> data.Resident:
        """Returns a split in its own order, to evaluate on."""
        arrays = self.splits[split]
        return data.Resident(arrays, min(EVAL_BATCH, len(arrays["label"])), shuffle=False)

    def normalize(self, batch: Batch) -> dict[str, Any]:
        """Returns a batch with normalized images."""
        return data.normalize(batch, mean=self.mean, std=self.std)

    def seen(self, batch: Batch, seed: int) -> dict[str, Any]:
        """Returns a batch as a student and its teacher see it: moved, normalized, without labels that are unknown.

        The labels of an image without labels are `hidden`, so that after the moves they are void outside of the image
        alone. ``known`` are the pixels whose class is known, and ``inside`` those to compare with the teacher: of an
        image with labels those of a class, of another one all of the image.
        """
        fill = [round(255 * x) for x in self.mean]
        found = self.normalize(data.dense.random_affine(batch, seed=seed, fill=fill, **MOVES))
        labeled, inside = batch["labeled"][:, None, None], found["label"] != VOID
        label = jnp.where(labeled, found["label"], VOID)
        return {**found, "label": label, "known": labeled & inside, "inside": inside}


def hidden(arrays: Arrays) -> dict[str, np.ndarray]:
    """Returns the entries of images whose labels are unknown: one class everywhere."""
    return {"label": np.zeros_like(arrays["label"])}


def read(config: Any) -> Scenes:
    """Returns the task's set, or that of ``--dataset``, from ``--data-dir``.

    A split without labels does not count. Without a test split, that of validation serves; what is missing then is held
    out from the training images, a fifth to test and an eighth to validate.
    """
    name = config.dataset or SET
    if config.data_dir is None:
        raise ValueError(f"--data-dir: expected the folder of prepared TFDS sets, with {name}.")
    splits: dict[str, dict[str, np.ndarray]] = {}
    size = None
    for split in ("train", "validation", "test"):
        try:
            source = data.source(name, split, config.data_dir)
        except ValueError:
            if split == "train":
                raise
            continue
        if "segmentation_mask" not in source[0]:
            if split == "train":
                raise ValueError(f"--dataset: expected images with segmentation_mask, got {name} with {[*source[0]]}.")
            continue
        size = size or small(np.shape(source[0]["image"])[:2])
        examples = data.dense.examples(source, size=size)
        rows = [examples[i] for i in range(min(len(examples), MOST))]
        arrays = {key: np.stack([row[key] for row in rows]) for key in ("image", "label")}
        if (arrays["label"] != VOID).any():
            splits[split] = arrays
        elif split == "train":
            raise ValueError(f"--dataset: expected masks with classes, got {name}, whose pixels are all void ({VOID}).")
    return scenes(name, splits)


def scenes(name: str, splits: dict[str, dict[str, np.ndarray]]) -> Scenes:
    """Returns a set of splits, of which some may be missing; the classes are counted from the labels."""
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
    for split, share in (("test", 5), ("validation", 8)):
        if split not in splits:
            splits["train"], splits[split] = held_out(splits["train"], share)
    labels = np.unique(np.concatenate([np.unique(arrays["label"]) for arrays in splits.values()]))
    classes = max(int(labels[labels != VOID].max()) + 1, 2)
    names = CLASS_NAMES.get(name.partition(":")[0], ())
    pixels = splits["train"]["image"] / 255
    return Scenes(
        name,
        splits,
        names if len(names) == classes else tuple(map(str, range(classes))),
        tuple(float(x) for x in pixels.mean(axis=(0, 1, 2))),
        tuple(float(max(x, 0.01)) for x in pixels.std(axis=(0, 1, 2))),
    )


def small(size: tuple[int, ...]) -> tuple[int, int]:
    """Returns the height and width of images whose longer side is at most `SIDE`.

    >>> small((120, 160)), small((48, 64))
    ((60, 80), (48, 64))
    """
    factor = min(SIDE / max(size), 1)
    return max(round(factor * size[0]), 1), max(round(factor * size[1]), 1)


def held_out(arrays: Arrays, share: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the images without every n-th one, in a random order, and these."""
    count = len(arrays["label"])
    if count < 2:
        raise ValueError(f"--dataset: expected at least two images to train and to test on, got {count}.")
    order = np.random.default_rng(0).permutation(count)
    chosen, rest = np.sort(order[: max(count // share, 1)]), np.sort(order[max(count // share, 1) :])
    return {k: x[rest] for k, x in arrays.items()}, {k: x[chosen] for k, x in arrays.items()}
