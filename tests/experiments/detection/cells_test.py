"""Detectors on a made-up set: methods build, labels that must not be known are not, other sets are read, a tiny run."""

import types

import jax
import numpy as np
import pytest

from experiments.detection import cells, main, pictures, sets
from jaxkd import data
from tests.experiments.language.tiny import traced, trained

NAMES = ("disk", "square")
COUNTS = {"train": 10, "validation": 4, "test": 6}


def example(generator, height, width):
    """An image with up to three bright rectangles; the second class is brighter."""
    image = generator.integers(0, 60, (height, width, 3)).astype(np.uint8)
    boxes, labels = [], []
    for _ in range(generator.integers(0, 4)):
        y, x = generator.integers(0, height - 8), generator.integers(0, width - 8)
        high, wide = generator.integers(5, 9, 2)
        label = int(generator.integers(0, 2))
        image[y : y + high, x : x + wide] = 130 + 100 * label
        boxes.append([y / height, x / width, min(1, (y + high) / height), min(1, (x + wide) / width)])
        labels.append(label)
    found = {"bbox": np.array(boxes, np.float32).reshape(-1, 4), "label": np.array(labels, np.int64)}
    return {"image": image, "objects": found}


def use(monkeypatch, splits=("train", "validation", "test"), sizes=((40, 48),), change=lambda row: row):
    """Puts a made-up set in the place of a prepared one, and small networks in the place of the task's."""

    def source(name, split, data_dir):
        if split not in splits:
            raise ValueError(f"{name}: no split {split!r}.")
        generator = np.random.default_rng(list(COUNTS).index(split))
        rows = [change(example(generator, *sizes[i % len(sizes)])) for i in range(COUNTS[split])]
        return Rows(rows)

    class Rows(list):
        name = "shapes:1.0.0"

    monkeypatch.setattr(data, "source", source)
    monkeypatch.setattr(data, "prepared", lambda data_dir: [])
    small = {"LABELED": 2, "OTHERS": 2, "FEW": 4, "EVAL_BATCH": 4, "TEACHER_STEPS": 2}
    small |= {"TEACHER": {"widths": (4, 4, 4), "channels": 6}, "STUDENT": {"widths": (2, 2, 2), "channels": 4}}
    for name, value in small.items():
        monkeypatch.setattr(cells, name, value)
    monkeypatch.setattr(pictures, "IMAGES", 2)
    monkeypatch.setattr(sets, "PIXELS", 40 * 48)


CONFIG = types.SimpleNamespace(data_dir="data", dataset=None, steps=4)


def opened(tmp_path, monkeypatch, few=4):
    work = cells.Detectors(few, CONFIG, tmp_path)
    batch = {name: np.float32(x[:2]) if name == "image" else x[:2] for name, x in work.boxes.splits["train"].items()}
    variables = work.teacher.init(jax.random.key(3), batch)
    monkeypatch.setattr(cells.Detectors, "taught", variables)  # as if it had been trained
    return work


@pytest.mark.slow
@pytest.mark.parametrize("method", cells.METHODS)
def test_a_method_builds(monkeypatch, tmp_path, method):
    use(monkeypatch)
    state, found = traced(opened(tmp_path, monkeypatch).training(method, 0, 8))
    assert "loss" in found and "labels" in found
    assert any(name.startswith("features/level2") for name in found) == (method not in ("student", "soft", "chen"))
    assert ("kd/classes" in found) == (method in ("soft", "chen"))
    assert bool(state.objective.params) == (method not in ("student", "soft"))


def test_labels_of_the_others_are_not_in_a_batch(monkeypatch, tmp_path):
    use(monkeypatch)
    work = cells.Detectors(4, CONFIG, tmp_path)
    batch = next(iter(work._some(0).batches()))
    assert batch["labeled"].tolist() == [True, True, False, False]
    assert batch["box_mask"][:2].any(axis=1).all() and not batch["box_mask"][2:].any()
    assert not batch["boxes"][2:].any() and not batch["box_label"][2:].any()
    first, again, other = (np.asarray(work._some(seed).arrays[0]["index"]) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first)) == 4 and not np.array_equal(first, other)
    assert next(iter(cells.Detectors(None, CONFIG, tmp_path)._whole(0).batches()))["labeled"].all()


def test_sets_of_several_sizes_and_splits_are_read(monkeypatch):
    use(monkeypatch, splits=("train", "test"), sizes=((240, 320), (300, 400)))
    found = sets.read(CONFIG, "bccd")
    assert found.size == (40, 48) and found.class_names == ("0", "1")
    assert {split: len(part["image"]) for split, part in found.splits.items()} == {
        "train": 8,
        "validation": 2,
        "test": 6,
    }
    use(monkeypatch, splits=("train", "validation"), sizes=((16, 16),))  # enlarged
    assert sets.read(CONFIG, "bccd").size == (40, 40)
    use(monkeypatch, splits=("train", "validation"))
    found = sets.read(CONFIG, "bccd")
    assert {split: len(part["image"]) for split, part in found.splits.items()} == {
        "train": 8,
        "validation": 2,
        "test": 4,
    }
    assert found.anchors((8, 16, 32)).shape == (6 * (30 + 9 + 4), 4)


def test_sets_without_boxes_raise(monkeypatch):
    use(monkeypatch, change=lambda row: {"image": row["image"], "label": 1})
    with pytest.raises(ValueError, match=r"expected images with the feature 'objects'.*'image', 'label'"):
        sets.read(CONFIG, "bccd")
    use(monkeypatch, change=lambda row: {**row, "objects": {name: x[:0] for name, x in row["objects"].items()}})
    with pytest.raises(ValueError, match="expected objects in some images"):
        sets.read(CONFIG, "bccd")
    with pytest.raises(ValueError, match="--data-dir"):
        sets.read(types.SimpleNamespace(data_dir=None, dataset=None), "bccd")


@pytest.mark.slow
def test_a_student_learns(monkeypatch, tmp_path):
    use(monkeypatch)
    work = opened(tmp_path, monkeypatch)
    state, loss = trained(work.training("fgd", 0, 8), 2)
    assert np.isfinite(loss)
    assert {"ap", "ap50", "ap75"} <= work.measure("fgd", 0, state).keys()
    assert work.references()["teacher"]["parameters"] > 0


@pytest.mark.slow
def test_a_tiny_run(monkeypatch, tmp_path):
    use(monkeypatch)
    command = ["bccd", "--methods", "soft", "--steps", "2", "--seeds", "1", "--no-equal-cost"]
    assert main.cli([*command, "--data-dir", "data", "--dataset", "shapes", "--out", str(tmp_path)]) == 0
    files = {path.name for path in (tmp_path / "detection" / "bccd-shapes").iterdir()}
    assert {"results.json", "report.md", "gains.png", "curves.png", "classes.png", "detections.png"} <= files
