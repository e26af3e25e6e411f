"""Prepared TFDS sets: access, names, and errors that say how to prepare a set."""

import pickle
import socket
import subprocess
import sys

import numpy as np
import pytest

from jaxkd import data


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("reading a set must never use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_source_reads_every_example(tiny_dir, tiny):
    source = data.source("tiny", "train", tiny_dir)
    assert len(source) == 37 and source.num_classes == 3 and source.class_names == ("cat", "dog", "owl")
    assert (source.name, source.split) == ("tiny:1.0.0", "train")
    for number, example in enumerate(source.__getitems__(range(37))):
        image, label = tiny("train", number)
        np.testing.assert_array_equal(example["image"], image)
        assert example["label"] == label and example["id"] == f"train_{number}".encode()
    assert source[5].keys() == {"image", "label", "id"}


def test_part_of_a_split_of_a_version(tiny_dir, tiny):
    part = data.source("tiny:1.0.0", "train[10:20]", str(tiny_dir))
    assert len(part) == 10
    np.testing.assert_array_equal(part[0]["image"], tiny("train", 10)[0])


def test_input_and_target_are_renamed(tiny_dir, tiny):
    source = data.source("renamed", "test", tiny_dir)
    assert source[2].keys() == {"image", "label", "id"}
    np.testing.assert_array_equal(source[2]["image"], tiny("test", 2)[0])
    assert source.class_names == ("cat", "dog", "owl")


def test_source_can_be_pickled(tiny_dir):
    source = pickle.loads(pickle.dumps(data.source("renamed", "test", tiny_dir)))
    assert source[1]["label"] == 1


def test_load_reads_a_set_into_memory(tiny_dir, tiny):
    dataset = data.load("tiny", "test", tiny_dir)
    assert {key: (value.dtype.name, value.shape) for key, value in dataset.arrays.items()} == {
        "image": ("uint8", (8, 6, 5, 3)),
        "label": ("int32", (8,)),
        "index": ("int32", (8,)),
    }
    assert (dataset.num_classes, dataset.name, dataset.class_names) == (3, "tiny", ("cat", "dog", "owl"))
    np.testing.assert_array_equal(dataset.arrays["image"][3], tiny("test", 3)[0])


def test_prepared_lists_the_sets(tiny_dir):
    found = [(str(entry), entry.file_format) for entry in data.prepared(tiny_dir)]
    assert found == [
        ("records:1.0.0", "tfrecord"),
        ("renamed:1.0.0", "array_record"),
        ("tiny:1.0.0", "array_record"),
    ]


@pytest.mark.parametrize("name", ["cifar10", "no_such_set", "tiny:2.0.0", "glue/cola"])
def test_missing_set_raises_with_the_commands_to_prepare_it(tiny_dir, name, no_network):
    with pytest.raises(FileNotFoundError) as caught:
        data.source(name, "train", tiny_dir)
    message = str(caught.value)
    assert f"{name!r}" in message and str(tiny_dir) in message and "tiny:1.0.0" in message
    assert "pip install tensorflow tensorflow-datasets\n" in message
    assert f"tfds build {name} --file_format=array_record --data_dir={tiny_dir}\n" in message


def test_other_file_format_raises(tiny_dir, no_network):
    with pytest.raises(FileNotFoundError, match=r"records:1\.0\.0 as tfrecord.*has no random access"):
        data.source("records", "train", tiny_dir)


def test_unknown_split_raises_with_the_known_ones(tiny_dir, no_network):
    with pytest.raises(ValueError, match=r"no split 'validation'. It has \{'train': 37, 'test': 8\}"):
        data.source("tiny", "validation", tiny_dir)


def test_default_directory_is_tfds_own(tiny_dir, monkeypatch, no_network):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny_dir))
    assert len(data.source("tiny", "test")) == 8
    monkeypatch.setenv("TFDS_DATA_DIR", str(tiny_dir / "empty"))
    with pytest.raises(FileNotFoundError, match="which does not exist"):
        data.source("tiny", "test")


@pytest.mark.parametrize("module", ["tensorflow_datasets", "array_record"])
def test_missing_library_raises_with_the_package_to_install(tiny_dir, monkeypatch, module):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)  # simulates a library that is not installed
    with pytest.raises(ImportError, match=r'Reading TFDS sets needs .*pip install "jaxkd-toolkit\[data\]"'):
        data.source("tiny", "test", tiny_dir)


def test_reading_never_imports_tensorflow(tiny_dir):
    program = f"""
import sys
from jaxkd import data
optional = [name for name in ("grain", "tensorflow_datasets", "sklearn") if name in sys.modules]
assert not optional, f"imported before they were needed: {{optional}}"
batches = data.Stream(data.source("tiny", "train", {str(tiny_dir)!r}), batch_size=8).batches()
next(batches)
data.load("tiny", "test", {str(tiny_dir)!r})
assert "tensorflow" not in sys.modules
# The stream is not closed: its threads must not keep the program from ending.
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, timeout=120)


def test_cifar100_has_the_published_statistics(data_dir):
    source = data.source("cifar100", "train", data_dir)
    assert len(source) == 50_000 and source.num_classes == 100 and len(source.class_names) == 100
    example = source[0]
    assert example["image"].shape == (32, 32, 3) and example["image"].dtype == np.uint8
    test = data.load("cifar100", "test[:500]", data_dir)
    assert test.arrays["image"].shape == (500, 32, 32, 3) and "coarse_label" in test.arrays
    # The published mean and standard deviation of the pixels, to the precision of 500 images.
    pixels = test.arrays["image"].reshape(-1, 3) / 255
    np.testing.assert_allclose(pixels.mean(axis=0), data.CIFAR100_MEAN, atol=0.03)
    np.testing.assert_allclose(pixels.std(axis=0), data.CIFAR100_STD, atol=0.02)
