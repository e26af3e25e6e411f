"""TFDS sets, written as `tfds build` does but without TensorFlow, so that every machine can test reading them."""

import io
import json
import pathlib

import numpy as np

MODULE = "tensorflow_datasets.core.features"


def image(*shape, encoding="png"):
    """Returns the feature of an image; a size of 0 is not known."""
    return _feature("image_feature.Image", "image", {"dtype": "uint8", "encodingFormat": encoding, **_shape(shape)})


def tensor(dtype, *shape):
    return _feature("tensor_feature.Tensor", "tensor", {"dtype": dtype, "encoding": "none", **_shape(shape)})


def label(classes):
    return _feature("class_label_feature.ClassLabel", "classLabel", {"numClasses": str(classes)})


def text():
    return _feature("text_feature.Text", "text", {})


def objects(classes, **more):
    """Returns the feature of an image's boxes and their classes."""
    box = {"bboxFormat": "REL_YXYX", "dtype": "float32", **_shape((4,))}
    fields = {"bbox": _feature("bounding_boxes.BBoxFeature", "boundingBox", box), "label": label(classes), **more}
    return _feature("sequence_feature.Sequence", "sequence", {"feature": _features(fields), "length": "-1"})


def write(root, name, features, splits, *, class_names=None, supervised=(), file_format="array_record"):
    """Prepares a set below ``root``, of examples that are dictionaries, by split."""
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    folder = pathlib.Path(root) / name / "1.0.0"
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        path = folder / f"{name}-{split}.{file_format}-00000-of-00001"
        writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
        for row in rows:
            example = tf_example_pb2.Example()
            for key, value in row.items():
                _put(example.features.feature, key, value, features[key])
            writer.write(example.SerializeToString())
        writer.close()
    (folder / "features.json").write_text(json.dumps(_features(features)))
    for key, names in (class_names or {}).items():
        (folder / f"{key.replace('/', '-')}.labels.txt").write_text("\n".join(names) + "\n")
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {
        "name": name,
        "version": "1.0.0",
        "fileFormat": file_format,
        "splits": [
            {"name": split, "numBytes": "1", "shardLengths": [str(len(rows))], "filepathTemplate": template}
            for split, rows in splits.items()
        ],
        **({"supervisedKeys": {"tuple": {"items": [{"featureKey": key} for key in supervised]}}} if supervised else {}),
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))


def _shape(shape):
    return {"shape": {"dimensions": [str(size or -1) for size in shape]} if shape else {}}


def _feature(name, kind, fields):
    return {"pythonClassName": f"{MODULE}.{name}", kind: fields}


def _features(features):
    return _feature("features_dict.FeaturesDict", "featuresDict", {"features": features})


def _put(stored, key, value, feature):
    """Adds a value to the features of a record."""
    from PIL import Image

    if isinstance(value, dict):
        for name, part in value.items():
            _put(stored, f"{key}/{name}", part, {})
    elif "image" in feature:
        pixels, png = np.asarray(value), io.BytesIO()
        Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(
            png, feature["image"]["encodingFormat"]
        )
        stored[key].bytes_list.value.append(png.getvalue())
    elif isinstance(value, str):
        stored[key].bytes_list.value.append(value.encode())
    elif np.asarray(value).dtype.kind == "f":
        stored[key].float_list.value.extend(np.ravel(value).tolist())
    else:
        stored[key].int64_list.value.extend(np.ravel(value).astype(int).tolist())
