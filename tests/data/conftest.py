"""A small TFDS set, written without TensorFlow, so that every machine can test streaming."""

import io
import json
import pathlib

import numpy as np
import pytest

CLASSES = ("cat", "dog", "owl")
TINY = {"train": 37, "test": 8}


def tiny_example(split, number):
    """Image and label of an example of a split."""
    generator = np.random.default_rng([len(split), number])
    return generator.integers(0, 256, (6, 5, 3), dtype=np.uint8), number % len(CLASSES)


def write_tiny(folder, *, name="tiny", file_format="array_record", supervised=("image", "label")):
    """Prepares a set as `tfds build` does: records, features.json, dataset_info.json and label names."""
    from array_record.python import array_record_module
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    folder.mkdir(parents=True)
    image_key, label_key = supervised
    for split, size in TINY.items():
        path = folder / f"{name}-{split}.{file_format}-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for number in range(size):
            pixels, label = tiny_example(split, number)
            png = io.BytesIO()
            Image.fromarray(pixels).save(png, format="PNG")
            example = tf_example_pb2.Example()
            example.features.feature[image_key].bytes_list.value.append(png.getvalue())
            example.features.feature[label_key].int64_list.value.append(label)
            example.features.feature["id"].bytes_list.value.append(f"{split}_{number}".encode())
            writer.write(example.SerializeToString())
        writer.close()
    module = "tensorflow_datasets.core.features"
    features = {
        image_key: {
            "pythonClassName": f"{module}.image_feature.Image",
            "image": {"dtype": "uint8", "shape": {"dimensions": ["6", "5", "3"]}},
        },
        label_key: {
            "pythonClassName": f"{module}.class_label_feature.ClassLabel",
            "classLabel": {"numClasses": str(len(CLASSES))},
        },
        "id": {"pythonClassName": f"{module}.text_feature.Text", "text": {}},
    }
    (folder / "features.json").write_text(
        json.dumps({"pythonClassName": f"{module}.features_dict.FeaturesDict", "featuresDict": {"features": features}})
    )
    (folder / f"{label_key}.labels.txt").write_text("\n".join(CLASSES))
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {
        "name": name,
        "version": "1.0.0",
        "fileFormat": file_format,
        "splits": [
            {"name": split, "numBytes": "1", "shardLengths": [str(size)], "filepathTemplate": template}
            for split, size in TINY.items()
        ],
        "supervisedKeys": {"tuple": {"items": [{"featureKey": key} for key in supervised]}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.fixture(scope="session")
def tiny_dir(tmp_path_factory) -> pathlib.Path:
    """A data_dir with "tiny" (37 + 8 images of 6 x 5), "renamed" (other feature names), "records" (tfrecord)."""
    root = tmp_path_factory.mktemp("tfds")
    write_tiny(root / "tiny" / "1.0.0")
    write_tiny(root / "renamed" / "1.0.0", name="renamed", supervised=("photo", "animal"))
    write_tiny(root / "records" / "1.0.0", name="records", file_format="tfrecord")
    return root


@pytest.fixture(scope="session")
def tiny():
    """Returns ``tiny(split, number) -> (image, label)``, the content of the set."""
    return tiny_example
