"""A small TFDS set, written without TensorFlow, so that every machine can test streaming."""

import pathlib

import numpy as np
import pytest

from tests import prepared_sets

CLASSES = ("cat", "dog", "owl")
TINY = {"train": 37, "test": 8}


def tiny_example(split, number):
    """Image and label of an example of a split."""
    generator = np.random.default_rng([len(split), number])
    return generator.integers(0, 256, (6, 5, 3), dtype=np.uint8), number % len(CLASSES)


def write_tiny(root, *, name="tiny", file_format="array_record", supervised=("image", "label")):
    image_key, label_key = supervised

    def row(split, number):
        pixels, label = tiny_example(split, number)
        return {image_key: pixels, label_key: label, "id": f"{split}_{number}"}

    prepared_sets.write(
        root,
        name,
        {image_key: prepared_sets.image(6, 5, 3), label_key: prepared_sets.label(3), "id": prepared_sets.text()},
        {split: [row(split, number) for number in range(size)] for split, size in TINY.items()},
        class_names={label_key: CLASSES},
        supervised=supervised,
        file_format=file_format,
    )


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> pathlib.Path:
    """A data_dir with "tiny" (37 + 8 images of 6 x 5), "renamed" (other feature names), "records" (tfrecord)."""
    root = tmp_path_factory.mktemp("tfds")
    write_tiny(root)
    write_tiny(root, name="renamed", supervised=("photo", "animal"))
    write_tiny(root, name="records", file_format="tfrecord")
    return root


@pytest.fixture(scope="session")
def tiny():
    """Returns ``tiny(split, number) -> (image, label)``, the content of the set."""
    return tiny_example
