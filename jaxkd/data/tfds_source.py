"""Any set of TensorFlow Datasets by its TFDS name, read at random from array_record files without TensorFlow.

Only what is already prepared on disk is read. `tensorflow_datasets.data_source(name)` would load the set's own
building code and, where the files are missing, download them; finding the directory here first means that a set that
is not there gives an error at once, on a machine without a network too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxkd.data.optional import require

_PURPOSE = "Reading TFDS sets"


class Source:
    """A prepared split with random access: ``len``, ``source[i]`` and ``source.__getitems__([i, j])``.

    An example is a dict of NumPy values: ``image`` and ``label`` where the set says which they are, its other features
    under their own names, undecoded text as bytes. A `Source` can be pickled, which is how worker processes get it.

    Use `source` to find one.

    Args:
      reader: the TFDS data source.
      name: of the set.
      split: of the set.
      renamed: our name for each of the set's names that differs.
      num_classes: of the label.
      class_names: of the label.

    Attributes:
      name: the set, as TFDS writes it: ``"cifar100:3.0.2"``.
      split: the split, as it was asked for.
      num_classes: of the label; 0 when the label is not a class.
      class_names: of the label, if the set has them.
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
        """The number of examples."""
        return len(self._reader)

    def __getitem__(self, position: int) -> dict[str, Any]:
        """The example at a position."""
        return self._rename(self._reader[position])

    def __getitems__(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Several examples, read together, which is faster than one by one."""
        return [self._rename(example) for example in self._reader.__getitems__([int(p) for p in positions])]  # type: ignore[attr-defined]

    def __repr__(self) -> str:
        """Says what is read."""
        return f"Source({self.name!r}, split={self.split!r}, {len(self)} examples)"

    def _rename(self, example: Mapping[str, Any]) -> dict[str, Any]:
        return {self._renamed.get(key, key): value for key, value in example.items()}


class Prepared(NamedTuple):
    """A set that a directory holds.

    Attributes:
      name: its TFDS name, with the configuration if it has one: ``"wmt/de-en"``.
      version: ``"3.0.2"``.
      file_format: ``"array_record"``, or another that cannot be read at random.
      path: its folder.
    """

    name: str
    version: str
    file_format: str
    path: Any

    def __str__(self) -> str:
        """As TFDS writes it."""
        return f"{self.name}:{self.version}"


def prepared(data_dir: Any = None) -> list[Prepared]:
    """The sets that a directory holds, the newest version of each last.

    Args:
      data_dir: the directory; by default what the environment variable ``TFDS_DATA_DIR`` says, else
        ``~/tensorflow_datasets``.

    Returns:
      One entry for each set, configuration and version; empty when the directory does not exist.

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
    """A split of a prepared TFDS set, for random access.

    Args:
      name: ``"cifar100"``, with a configuration ``"name/config"`` and a version ``"name:3.0.2"`` if there are several.
      split: ``"train"``, or a part of a split in TFDS's notation, ``"train[:10%]"``.
      data_dir: where prepared sets are; by default what the environment variable ``TFDS_DATA_DIR`` says, else
        ``~/tensorflow_datasets``.

    Returns:
      The split. Nothing is read yet.

    Raises:
      FileNotFoundError: the set is not prepared there, or not as array_record. The message says what is there, and
        the commands that prepare it (the one thing that needs TensorFlow, once).
      ValueError: the set has several configurations, or no such split.
      ImportError: a library is not installed; the message says which.

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
    renamed = _our_names(builder.info.supervised_keys, features)
    keys = {ours: theirs for theirs, ours in renamed.items()}
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


def _our_names(supervised: Any, features: Mapping[str, Any]) -> dict[str, str]:
    """Their names for the input and the target, where a set calls them something else."""
    if not isinstance(supervised, tuple) or len(supervised) != 2:
        return {}
    pairs = zip(supervised, ("image", "label"), strict=True)
    wanted = {theirs: ours for theirs, ours in pairs if isinstance(theirs, str) and ours not in features}
    kinds = {"image": lambda feature: len(feature.shape) == 3, "label": lambda feature: len(feature.shape) == 0}
    return {theirs: ours for theirs, ours in wanted.items() if kinds[ours](features[theirs])}


def _find(name: str, root: Any) -> Prepared:
    stem, _, version = name.partition(":")
    entries = prepared(root)
    matching = [entry for entry in entries if stem in (entry.name, entry.name.partition("/")[0])]
    matching = [entry for entry in matching if not version or entry.version == version]
    readable = [entry for entry in matching if entry.file_format == "array_record"]
    if not readable:
        raise FileNotFoundError(_what_to_do(name, root, entries, matching))
    configurations = sorted({entry.name for entry in readable})
    if len(configurations) > 1 and stem not in configurations:
        raise ValueError(f"{name!r} is prepared in several configurations: name one of {configurations}.")
    return [entry for entry in readable if entry.name == (stem if stem in configurations else configurations[0])][-1]


def _what_to_do(name: str, root: Any, entries: list[Prepared], matching: list[Prepared]) -> str:
    if matching:
        formats = ", ".join(f"{entry} as {entry.file_format}" for entry in matching)
        problem = f"{name!r} is in {root}, but not as array_record ({formats}), so it cannot be read at random."
    elif not root.exists():
        problem = f"{name!r} is not prepared in {root}, which does not exist."
    else:
        there = ", ".join(f"{entry} ({entry.file_format})" for entry in entries) or "no prepared sets"
        problem = f"{name!r} is not prepared in {root}, which holds {there}."
    return (
        f"{problem} Another directory is given with data_dir=..., or the environment variable TFDS_DATA_DIR. To "
        "prepare the set (this downloads it, and needs TensorFlow once; reading does not):\n"
        "  pip install tensorflow tensorflow-datasets\n"
        f"  tfds build {name} --file_format=array_record --data_dir={root}\n"
        "The names that TFDS knows are at https://www.tensorflow.org/datasets/catalog/overview."
    )


def _directory(data_dir: Any) -> Any:
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    # etils' paths are what TFDS itself uses: they name buckets as well as folders.
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
