"""Prepared sets of TensorFlow Datasets (TFDS), read without TensorFlow.

This module reads array_record files of sets that are prepared on disk, with random access.
`tensorflow_datasets.data_source(name)` would load the set's builder and download missing files. Finding the directory
here first turns a missing set into an immediate error, also on a machine without a network.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxkd._core.checks import require

_PURPOSE = "Reading TFDS sets"


class Source:
    """A prepared split with random access; `source` opens one.

    It supports ``len(source)``, ``source[i]`` and ``source.__getitems__([i, j])``. An example is a dict of NumPy
    values: ``image`` and ``label`` where the set declares an input and a target, its other features under their own
    names, undecoded text as bytes. A `Source` can be pickled for worker processes.

    Attributes:
      name: name of the set in TFDS's notation, ``"cifar100:3.0.2"``.
      split: split, as requested.
      num_classes: number of classes of the label; 0 if the label is not a class.
      class_names: names of the classes, if the set has them.
    """

    def __init__(
        self,
        reader: Sequence[Any],
        *,
        name: str,
        split: str,
        renamed: Mapping[str, str],
        num_classes: int,
        class_names: tuple[str, ...] | None,
    ) -> None:
        self.name, self.split = name, split
        self.num_classes, self.class_names = num_classes, class_names
        self._reader, self._renamed = reader, dict(renamed)

    def __len__(self) -> int:
        return len(self._reader)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return self._rename(self._reader[position])

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Reads several examples together, which is faster than one by one."""
        return [self._rename(example) for example in self._reader.__getitems__([int(p) for p in positions])]  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        return f"Source({self.name!r}, split={self.split!r}, {len(self)} examples)"

    def _rename(self, example: Mapping[str, Any]) -> dict[str, Any]:
        return {self._renamed.get(key, key): value for key, value in example.items()}


class Prepared(NamedTuple):
    """A prepared set in a directory.

    Attributes:
      name: TFDS name, with the configuration if it has one: ``"wmt/de-en"``.
      version: version, ``"3.0.2"``.
      file_format: ``"array_record"``, or a format without random access.
      path: folder of the set.
    """

    name: str
    version: str
    file_format: str
    path: Any

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


def prepared(data_dir: Any = None) -> list[Prepared]:
    """Lists the prepared sets of a directory, the newest version of each last.

    Args:
      data_dir: the directory; by default that of the environment variable ``TFDS_DATA_DIR``, or
        ``~/tensorflow_datasets``.

    Returns:
      An entry per set, configuration and version; an empty list if the directory does not exist.

    >>> prepared("/nowhere")
    []
    """
    root = _directory(data_dir)
    found = []
    for depth in ("*/*", "*/*/*"):
        for path in root.glob(f"{depth}/dataset_info.json") if root.exists() else ():
            *parts, version = path.parent.relative_to(root).parts
            if _version(version) and (path.parent / "features.json").exists():
                file_format = json.loads(path.read_text()).get("fileFormat", "tfrecord")
                found.append(Prepared("/".join(parts), version, file_format, path.parent))
    return sorted(found, key=lambda entry: (entry.name, _version(entry.version)))


def source(name: str, split: str, data_dir: Any = None) -> Source:
    """Opens a split of a prepared TFDS set for random access.

    Args:
      name: name of the set, ``"cifar100"``; with a configuration ``"name/config"`` or a version ``"name:3.0.2"`` where
        there are several.
      split: ``"train"``, or a part of a split in TFDS's notation, ``"train[:10%]"``.
      data_dir: directory of prepared sets, as for `prepared`.

    Returns:
      The split. No example is read yet.

    Raises:
      FileNotFoundError: the set is not prepared there, or not as array_record. The message lists the prepared sets and
        the commands that prepare this one; only they need TensorFlow.
      ValueError: the set has several configurations, or no such split.
      ImportError: a library is not installed; the message names it.

    >>> source("cifar100", "train", "/nowhere")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    FileNotFoundError: 'cifar100' is not prepared in /nowhere, which does not exist...
    """
    entry = _find(name, _directory(data_dir))
    tfds = require("tensorflow_datasets", purpose=_PURPOSE)
    require("array_record.python.array_record_data_source", purpose=_PURPOSE)
    builder = tfds.builder_from_directory(os.fspath(entry.path))
    features = builder.info.features
    if any(isinstance(feature, tfds.features.Image) for feature in features.values()) and not _can_decode_images():
        raise ImportError('Decoding images needs Pillow or OpenCV. Install it with: pip install "jaxkd-toolkit[data]"')
    try:
        reader = builder.as_data_source(split=split)
    except (ValueError, KeyError) as error:
        sizes = {key: value.num_examples for key, value in builder.info.splits.items()}
        raise ValueError(
            f"{entry}: no split {split!r}. It has {sizes}, and parts of them such as 'train[:10%]' ({error})."
        ) from error
    renamed = _new_names(builder.info.supervised_keys, features)
    keys = {new: old for old, new in renamed.items()}
    label: Any = dict(features.items()).get(keys.get("label", "label"))
    classes = int(label.num_classes or 0) if isinstance(label, tfds.features.ClassLabel) else 0
    return Source(
        reader,
        name=str(entry),
        split=split,
        renamed=renamed,
        num_classes=classes,
        class_names=tuple(label.names) if classes else None,
    )


def _new_names(supervised: Any, features: Mapping[str, Any]) -> dict[str, str]:
    """Maps the set's names of input and target to ``image`` and ``label``."""
    if not isinstance(supervised, tuple) or len(supervised) != 2:
        return {}
    pairs = zip(supervised, ("image", "label"), strict=True)
    wanted = {old: new for old, new in pairs if isinstance(old, str) and new not in features}
    kinds = {"image": lambda feature: len(feature.shape) == 3, "label": lambda feature: len(feature.shape) == 0}
    return {old: new for old, new in wanted.items() if kinds[new](features[old])}


def _find(name: str, root: Any) -> Prepared:
    stem, _, version = name.partition(":")
    entries = prepared(root)
    matching = [entry for entry in entries if stem in (entry.name, entry.name.partition("/")[0])]
    matching = [entry for entry in matching if not version or entry.version == version]
    readable = [entry for entry in matching if entry.file_format == "array_record"]
    if not readable:
        raise FileNotFoundError(_how_to_prepare(name, root, entries, matching))
    configurations = sorted({entry.name for entry in readable})
    if len(configurations) > 1 and stem not in configurations:
        raise ValueError(f"{name!r} is prepared in several configurations: name one of {configurations}.")
    return [entry for entry in readable if entry.name == (stem if stem in configurations else configurations[0])][-1]


def _how_to_prepare(name: str, root: Any, entries: list[Prepared], matching: list[Prepared]) -> str:
    if matching:
        formats = ", ".join(f"{entry} as {entry.file_format}" for entry in matching)
        problem = f"{name!r} is in {root}, but not as array_record ({formats}), so that it has no random access."
    elif not root.exists():
        problem = f"{name!r} is not prepared in {root}, which does not exist."
    else:
        held = ", ".join(f"{entry} ({entry.file_format})" for entry in entries) or "no prepared sets"
        problem = f"{name!r} is not prepared in {root}, which holds {held}."
    return (
        f"{problem} Name another directory with data_dir=..., or with the environment variable TFDS_DATA_DIR. To "
        "prepare the set (this downloads it and needs TensorFlow, which reading does not need):\n"
        "  pip install tensorflow tensorflow-datasets\n"
        f"  tfds build {name} --file_format=array_record --data_dir={root}\n"
        "The catalog of names is at https://www.tensorflow.org/datasets/catalog/overview."
    )


def _directory(data_dir: Any) -> Any:
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    # TFDS itself uses etils' paths, which name buckets as well as folders.
    return require("etils.epath", purpose=_PURPOSE).Path(data_dir).expanduser()


def _version(text: str) -> tuple[int, ...]:
    parts = text.split(".")
    return tuple(int(part) for part in parts) if len(parts) == 3 and all(part.isdigit() for part in parts) else ()


def _can_decode_images() -> bool:
    for module in ("cv2", "PIL.Image"):
        try:
            require(module, purpose=_PURPOSE)
        except ImportError:
            continue
        return True
    return False
