"""Sets of the same kind that the dense experiments were not written for, prepared as TFDS prepares them."""

import csv
import importlib
import json
import types

import numpy as np
import pytest

from experiments.detection import cells, sets
from experiments.kit.tasks import poses, run
from experiments.pose import lspet
from experiments.segmentation import camvid, scenes
from experiments.video import frames, online
from experiments.video import pose as clip_poses
from tests import prepared_sets
from tests.prepared_sets import image, label, objects, tensor, text


def scene(generator, height, width, count, classes):
    """Returns an image with bright boxes, its mask, and its objects."""
    pixels = generator.integers(0, 80, (height, width, 3)).astype(np.uint8)
    mask, boxes, labels = np.zeros((height, width, 1), np.uint8), [], []
    for _ in range(count):
        tall, wide = generator.integers(8, height // 2), generator.integers(8, width // 2)
        top, left = generator.integers(0, height - tall), generator.integers(0, width - wide)
        labels.append(int(generator.integers(classes)))
        pixels[top : top + tall, left : left + wide, labels[-1] % 3] = 200
        mask[top : top + tall, left : left + wide] = labels[-1] + 1
        boxes.append([top / height, left / width, (top + tall) / height, (left + wide) / width])
    found = {"bbox": np.array(boxes, np.float32).reshape(-1, 4), "label": np.array(labels, np.int64)}
    return pixels, mask, found


def boxes(generator, count):
    """Returns photographs of many sizes, every fifth without objects, with the entries of COCO."""
    rows = []
    for number in range(count):
        size = int(generator.integers(150, 300)), int(generator.integers(200, 320))
        pixels, _, found = scene(generator, *size, number % 5, 4)
        many = len(found["label"])
        found |= {"area": np.arange(many), "is_crowd": np.zeros(many, bool), "id": np.arange(many)}
        rows.append({"image": pixels, "image/id": number, "image/filename": f"{number}.png", "objects": found})
    return rows


def masks(generator, count):
    rows = []
    for number in range(count):
        pixels, mask, _ = scene(generator, 90 + number, 120 + number, 3, 4)
        mask[:3] = 255
        rows.append({"image": pixels, "label": number % 3, "segmentation_mask": mask})
    return rows


def people(generator, count, places):
    """Returns frames of clips of twelve, with key points of two places and ``visible``, or of three places."""
    rows = []
    for number in range(count):
        pixels, _, _ = scene(generator, 128, 112, 2, 3)
        points = np.concatenate([generator.uniform(5, 110, (9, 2)), generator.integers(0, 3, (9, 1))], axis=1)
        row = {"image": pixels, "keypoints": points[:, :places].astype(np.float32)}
        row |= {"visible": points[:, 2] > 0} if places == 2 else {}
        rows.append(row | {"clip": 100 + 7 * (number // 12), "frame": 1 + number % 12})
    return rows


def film(generator, count, first=50, named=False):
    """Returns every second frame of clips, ten of each, in no order."""
    rows = []
    for number in range(count):
        pixels, _, found = scene(generator, 90, 140, number % 4, 2)
        clip = first + number // 10
        row = {"image": pixels, "objects": found, "clip": f"clip {clip}" if named else clip}
        rows.append(row | {"frame": 1 + 2 * (number % 10)})
    return [rows[number] for number in generator.permutation(count)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Returns the folder of the sets."""
    root, generator = tmp_path_factory.mktemp("sets"), np.random.default_rng(0)

    def prepare(name, features, splits, **options):
        prepared_sets.write(root, name, features, splits, **options)

    coco = {"area": tensor("int64"), "is_crowd": tensor("bool"), "id": tensor("int64")}
    photo = {"image": image(0, 0, 3), "image/id": tensor("int64"), "image/filename": text()}
    splits = {"train": boxes(generator, 20), "test": boxes(generator, 10)}
    names = {"objects/label": ("ant", "bee", "cat", "dog")}
    prepare("boxes", photo | {"objects": objects(4, **coco)}, splits, class_names=names)
    masked = {"image": image(0, 0, 3), "label": label(3), "segmentation_mask": image(0, 0, 1)}
    prepare("masks", masked, {"train": masks(generator, 16), "validation": masks(generator, 4)})
    numbers = {"clip": tensor("int32"), "frame": tensor("int64")}
    shown = {"image": image(128, 112, 3), **numbers}
    splits = {"train": people(generator, 48, 3), "test": people(generator, 12, 3)}
    prepare("three", shown | {"keypoints": tensor("float32", 9, 3)}, splits)
    splits = {"train": people(generator, 48, 2), "validation": people(generator, 12, 2)}
    seen = shown | {"keypoints": tensor("float32", 9, 2), "visible": tensor("bool", 9)}
    prepare("two", seen, splits)
    splits = {name: [row | {"clip": f"clip {row['clip']}"} for row in rows] for name, rows in splits.items()}
    prepare("called", seen | {"clip": text()}, splits)
    filmed = {"image": image(90, 140, 3), "objects": objects(2), **numbers}
    prepare("film", filmed, {"train": film(generator, 60), "test": film(generator, 30, 90)})
    prepare("named", filmed | {"clip": text()}, {"train": film(generator, 60, named=True)})
    return root


@pytest.fixture
def read(prepared):
    """Returns ``read(reader, name, ...)``, which reads one of the sets by an experiment's own reader."""
    return lambda reader, name, *arguments, **options: reader(
        types.SimpleNamespace(data_dir=prepared, dataset=name), *arguments, **options
    )


def test_boxes_of_images_of_many_sizes(read):
    found = read(sets.read, "boxes", "bccd")
    assert found.class_names == ("ant", "bee", "cat", "dog") and found.most == 4
    assert [len(found.splits[split]["image"]) for split in ("train", "validation", "test")] == [17, 3, 10]
    height, width = found.size
    assert height % 8 == width % 8 == 0 and abs(height * width / sets.PIXELS - 1) < 0.15
    kept = found.splits["test"]["boxes"][found.splits["test"]["box_mask"]]
    assert kept.min() >= 0 and kept[:, 2].max() <= width and kept[:, 3].max() <= height


def test_masks_of_images_of_many_sizes(read):
    found = read(scenes.read, "masks")
    assert len(found.class_names) == 5 and set(found.splits) == {"train", "validation", "test"}
    assert set(np.unique(found.splits["train"]["label"])) <= {0, 1, 2, 3, 4, 255}


@pytest.mark.parametrize("name", ["three", "two", "called"])
def test_key_points_with_visibility_in_either_form(read, name):
    found = read(poses.read, name, "lspet", group="clip")
    assert found.joints == tuple(map(str, range(9))) and found.swap == ()
    for part in found.splits.values():
        assert part["image"].shape[1:] == (*poses.SIZE, 3) and part["points"].shape[1:] == (9, 2)
        assert 0.3 < part["point_mask"].mean() < 0.95
        assert clip_poses.clips(part)["image"].shape[1] == 5


@pytest.mark.parametrize("name", ["film", "named"])
def test_frames_of_clips(read, name):
    found = read(frames.read, name)
    assert found.size == (90, 140) and found.classes == 2
    for part in (found.train, found.test):
        assert len(part["image"]) >= 20 and part["boxes"].shape[1] == frames.LEAST_BOXES
        for clip in np.unique(part["clip"]):
            assert np.diff(part["frame"][part["clip"] == clip]).tolist() == [2] * 9
    assert not np.isin(found.train["clip"], found.test["clip"]).any()


SMALL = {"widths": (4, 4, 8), "channels": 4}
DYNAMIC = {"widths": (4,), "channels": 3, "kernel_size": 3, "initializer_widths": (4,), "initializer_channels": 3}
SIZES = {
    cells: {"TEACHER": SMALL, "STUDENT": SMALL},
    camvid: {"TEACHER": SMALL | {"stride": 2}, "STUDENT": SMALL | {"stride": 2}},
    lspet: {"TEACHER": ((4, 6), 4), "STUDENT": ((4,), 3)},
    clip_poses: {"LARGE": ((4, 6), 4), "SMALL": ((4,), 3), "DYNAMIC": DYNAMIC},
    online: {"TEACHER": ((4, 4, 8), 4), "STUDENT": ((4, 4, 4), 4), "LEARN_FRAMES": 20, "WINDOW": 5, "LSTM_STEPS": 2},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "task", "name", "method"),
    [
        (cells, "bccd", "boxes", "fgd"),
        (camvid, "camvid", "masks", "skd"),
        (lspet, "lspet", "three", "structure"),
        (lspet, "lspet", "two", "all_features"),
        (clip_poses, "jhmdb_pose", "called", "dynamic_kd"),
        (online, "jhmdb_video", "film", "lstm"),
        (online, "jhmdb_video", "named", "motion"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__.split(".")[1],
)
def test_a_short_trial_of_another_set(prepared, tmp_path, monkeypatch, module, task, name, method):
    for constant, value in SIZES[module].items():
        monkeypatch.setattr(module, constant, value)
    field = module.__name__.split(".")[1]
    arguments = [task, "--dataset", name, "--data-dir", str(prepared), "--methods", method, "--out", str(tmp_path)]
    tasks = importlib.import_module(f"experiments.{field}.main").TASKS
    assert run.cli(field, tasks, [*arguments, "--steps", "2", "--seeds", "1", "--no-equal-cost"]) == 0
    folder = tmp_path / field / f"{task}-{name}"
    assert set(json.loads((folder / "results.json").read_text())["rows"]) == {"student", method}
    for figure in tasks[task].figures:
        assert (folder / f"{figure}.png").stat().st_size > 1000
    with (folder / "prepared" / "teacher" / "metrics.csv").open() as log:
        assert int(list(csv.DictReader(log))[-1]["step"]) == 20  # a short trial has a short teacher
