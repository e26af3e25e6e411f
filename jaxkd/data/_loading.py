"""Sets by name: scikit-learn's digits, and any prepared TFDS set read into memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkd._core.checks import require
from jaxkd.data._dataset import Dataset, from_arrays
from jaxkd.data._splits import split as split_dataset
from jaxkd.data._tfds_source import source

DIGITS_SPLITS: Mapping[str, int] = {"train": 1097, "validation": 300, "test": 400}
"""Sizes of the splits of the digits: stratified, always the same examples."""


def digits() -> Dataset:
    """Returns scikit-learn's bundled handwritten digits: 1797 real images.

    The original values, 0 to 16, are rescaled to the range of uint8 (16, full ink, becomes 255), so that one pipeline
    serves every set; ``round(image / 255 * 16)`` restores them.

    Returns:
      ``image`` uint8 ``[1797, 8, 8, 1]``, ``label`` int32, ``index`` int32 (the position in scikit-learn's order).

    Raises:
      ImportError: scikit-learn is not installed.

    >>> images = digits().arrays["image"]
    >>> images.shape, images.dtype.name, int(images.max())
    ((1797, 8, 8, 1), 'uint8', 255)
    """
    raw = require("sklearn.datasets", purpose="the digits").load_digits()
    image = np.round(raw.images * (255 / 16)).astype(np.uint8)[..., None]
    return from_arrays(image, raw.target, num_classes=10, name="digits", class_names=tuple("0123456789"))


def load(name: str, split: str, data_dir: Any = None) -> Dataset:
    """Loads a split of a set into memory, by name.

    Args:
      name: ``"digits"``, or any TFDS name that is prepared in ``data_dir`` (see `source`).
      split: for the digits ``"train"`` (1097), ``"validation"`` (300), ``"test"`` (400) or ``"all"``; otherwise a split
        in TFDS's notation, ``"train"`` or ``"train[:10%]"``.
      data_dir: directory of prepared sets, as for `source`. The digits need none.

    Returns:
      The decoded split. It has numeric features only, since text cannot be placed on a device.

    Raises:
      ValueError: no such split; or the examples differ in shape, so that they need a `Stream` with a ``transform``.
      FileNotFoundError, ImportError: as for `source`.

    >>> from jaxkd import data
    >>> data.num_examples(load("digits", "test"))
    400
    """
    if name == "digits":
        return _digits_split(split)
    prepared = source(name, split, data_dir)
    columns: dict[str, list[Any]] = {}
    for start in range(0, len(prepared), 1024):
        for example in prepared.__getitems__(range(start, min(start + 1024, len(prepared)))):
            for key, value in example.items():
                if np.asarray(value).dtype.kind in "buif":
                    columns.setdefault(key, []).append(value)
    for key, values in columns.items():
        if len({np.shape(value) for value in values}) > 1:
            raise ValueError(
                f"{name}: {key!r} differs in shape from example to example, so the set does not form an array. Read it "
                f"with Stream(source({name!r}, {split!r}, ...), transform=...), where the transform resizes an example."
            )
    if not {"image", "label"} <= columns.keys():
        raise ValueError(
            f"{name}: expected an image and a label, got {sorted(columns)}. Read the features with source(...) and "
            "pass them to from_arrays(image, label, ...)."
        )
    others = {key: np.stack(value) for key, value in columns.items() if key not in ("image", "label", "index")}
    return from_arrays(
        np.stack(columns["image"]),
        np.stack(columns["label"]),
        num_classes=prepared.num_classes,
        name=name,
        class_names=prepared.class_names,
        **{key: value.astype(np.int32) if value.dtype == np.int64 else value for key, value in others.items()},
    )


def _digits_split(split: str) -> Dataset:
    whole = digits()
    if split == "all":
        return whole
    if split not in DIGITS_SPLITS:
        raise ValueError(f"split: the digits have {[*DIGITS_SPLITS, 'all']}, got {split!r}.")
    # Published numbers refer to these splits, so that the seed is fixed.
    parts = split_dataset(whole, tuple(DIGITS_SPLITS.values()), seed=0)
    return dict(zip(DIGITS_SPLITS, parts, strict=True))[split]
