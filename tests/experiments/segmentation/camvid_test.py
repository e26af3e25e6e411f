"""Segmentation on a made-up set: methods build, labels stay hidden, any set is read, a tiny run writes its report."""

import functools
import json
import pathlib
import types

import jax
import numpy as np
import pytest

from experiments.segmentation import camvid, main, pictures, scenes
from jaxkd import data
from tests.experiments.classification.tiny import traced

SPLITS = {"train": 16, "validation": 4, "test": 5}
CLASSES = 3


def examples(count, size=(12, 16), seed=0, key="segmentation_mask"):
    """Images whose brightness is their class, with a void border."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        mask = np.full(size, 0, np.uint8)
        mask[:, : rng.integers(2, size[1])] = 1
        mask[: rng.integers(2, size[0])] += 1
        image = (80 * mask[..., None] + rng.integers(0, 20, (*size, 3))).astype(np.uint8)
        mask[0] = scenes.VOID
        made.append({"image": image, key: mask[..., None]})
    return made


def source(name, split, data_dir, splits=SPLITS, **options):
    if split not in splits:
        raise ValueError(f"{name} has no split {split}")
    return examples(splits[split], seed=len(split), **options)


CONFIG = types.SimpleNamespace(data_dir=pathlib.Path("data"), dataset=None, steps=400)


@pytest.fixture
def set_of(monkeypatch):
    return lambda **options: monkeypatch.setattr(data, "source", functools.partial(source, **options))


@pytest.fixture
def work(monkeypatch, tmp_path, set_of):
    set_of()
    monkeypatch.setattr(camvid, "LABELED", 2)
    monkeypatch.setattr(camvid, "OTHERS", 3)
    monkeypatch.setattr(camvid, "STUDENT", {"widths": (4, 4, 4), "channels": 4, "stride": 4})
    monkeypatch.setattr(camvid, "TEACHER", {"widths": (4, 6, 4), "channels": 5, "stride": 2})
    opened = camvid.CamVid(CONFIG, tmp_path)
    image = opened.scenes.splits["train"]["image"][:1]
    drawn = opened.teacher.init(jax.random.key(3), opened.scenes.normalize({"image": image}))
    opened.__dict__["_taught"] = drawn
    return opened


# --- sets -------------------------------------------------------------------------------------------------------------


def test_any_set_is_read(set_of):
    set_of(size=(100, 50))
    found = scenes.read(types.SimpleNamespace(data_dir="data", dataset="other/set"))
    assert found.class_names == ("0", "1", "2") and found.name == "other/set"
    assert found.splits["test"]["label"].shape == (5, 80, 40)
    assert set(np.unique(found.splits["train"]["label"])) == {0, 1, 2, scenes.VOID}


@pytest.mark.parametrize(
    ("splits", "counts"),
    [
        ({"train": 20}, (14, 2, 4)),
        ({"train": 16, "validation": 5}, (14, 2, 5)),
        ({"train": 16, "test": 5}, (14, 2, 5)),
    ],
)
def test_missing_splits_are_held_out(set_of, splits, counts):
    set_of(splits=splits)
    found = scenes.read(CONFIG).splits
    assert tuple(len(found[name]["label"]) for name in ("train", "validation", "test")) == counts
    rows = [image.tobytes() for name in found for image in found[name]["image"]]
    assert len(set(rows)) == len(rows)


def test_sets_that_do_not_fit(set_of):
    with pytest.raises(ValueError, match="--data-dir: expected the folder of prepared TFDS sets, with camvid"):
        scenes.read(types.SimpleNamespace(data_dir=None, dataset=None))
    set_of(key="mask")
    with pytest.raises(ValueError, match=r"--dataset: expected images with segmentation_mask, got camvid with"):
        scenes.read(CONFIG)
    set_of(splits={"test": 3})
    with pytest.raises(ValueError, match="no split train"):
        scenes.read(CONFIG)


def test_names_of_camvid():
    splits = {"train": {"image": np.zeros((8, 2, 2, 3), np.uint8), "label": np.full((8, 2, 2), 10, np.uint8)}}
    found = scenes.scenes("camvid", splits)
    assert found.class_names[0] == "sky" and len(found.class_names) == 11
    assert all(x >= 0.01 for x in found.std)


# --- what is seen -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_labels_of_other_images_are_never_seen(work):
    batch = next(iter(work.training("skd", 0, 8).inputs.batches()))
    assert batch["labeled"].tolist() == [True] * 2 + [False] * 3
    found = work.scenes.seen(batch, 0)
    assert (found["label"][2:] == scenes.VOID).all() and not found["known"][2:].any()
    assert found["inside"][2:].any() and (found["known"][:2] == found["inside"][:2]).all()
    # Changing a hidden label changes nothing of what is seen.
    again = work.scenes.seen({**batch, "label": batch["label"].at[2:].set(1)}, 0)
    assert all(np.array_equal(found[name], again[name]) for name in found)


@pytest.mark.slow
def test_labeled_images_are_few_and_of_the_seed(work):
    sets = [work._few(seed).arrays[0] for seed in (0, 0, 1)]
    index = [np.asarray(jax.tree.leaves(arrays["index"])[0]) for arrays in sets]
    assert len(index[0]) == 2 and np.array_equal(index[0], index[1]) and not np.array_equal(index[0], index[2])


def test_arrays_survive_json():
    array = np.random.default_rng(0).integers(0, 256, (2, 3, 4)).astype(np.uint8)
    np.testing.assert_array_equal(pictures.unpacked(json.loads(json.dumps(pictures.packed(array)))), array)


def test_colors_are_different():
    assert len(np.unique(pictures.colors(20)[:20], axis=0)) == 20
    assert (pictures.colors(3)[255] == 0).all()


# --- methods ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", camvid.METHODS)
def test_a_method_builds(work, method):
    state, found = traced(work.training(method, 0, 8))
    assert "ce" in found and ("kd" in str(found.keys())) == (not method.endswith("student"))
    assert bool(state.objective.params) == method.endswith("skd")


def test_methods_have_their_baselines():
    for name, method in camvid.METHODS.items():
        assert method.baseline == ("all_student" if name.startswith("all_") else "student")
        assert camvid.objective(name)


@pytest.mark.slow
def test_measures_and_pictures(work):
    training = work.training("student", 0, 8)
    state = training.kd.init(jax.random.key(0), next(iter(training.inputs.batches())))
    found = work.measure("student", 0, state)
    assert {*camvid.TASK.measures, "iou/0"} <= found.keys()
    reference = work.references()["teacher"]
    assert reference["agreement"] == 1 and reference["parameters"] > 0
    shown = json.loads(json.dumps(work.shown("student", state)))
    assert pictures.unpacked(shown["predicted"]).shape == (3, 12, 16) and work.shown("pair", state) == {}
    row = {"title": "alone", "shown": {"masks": shown}, "measures": {k: {"mean": x} for k, x in found.items()}}
    results = {"rows": {"student": row}, "references": {"teacher": reference}}
    for draw in pictures.masks, pictures.classes:
        assert draw(results)[:4] == draw({"rows": {}, "references": {}})[:4] == b"\x89PNG"


@pytest.mark.slow
def test_a_tiny_run(work, monkeypatch, tmp_path):
    monkeypatch.setattr(camvid.CamVid, "_taught", work._taught)
    arguments = ["camvid", "--dataset", "made_up", "--data-dir", "data", "--methods", "cwd", "--seeds", "1"]
    arguments += ["--steps", "2", "--no-equal-cost", "--out", str(tmp_path)]
    assert main.cli(arguments) == 0
    folder = tmp_path / "segmentation" / "camvid-made_up"
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert set(rows) == {"student", "cwd"} and rows["cwd"]["gains"]["steps"]
    assert {"gains.png", "curves.png", "masks.png", "classes.png", "report.md"} <= {x.name for x in folder.iterdir()}
