"""Sets of poses: their splits, joints and metrics; skeletons that are drawn of them."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kit.tasks import poses, skeletons
from jaxkd import data, dense
from jaxkd.types import Context
from tests.experiments.pose import tiny


def other(name):
    return types.SimpleNamespace(data_dir="data", dataset=name)


def test_left_and_right_are_exchanged_and_bones_are_of_one_side():
    for name, joints in poses.JOINTS.items():
        people = poses.People(name, joints, {})
        assert len(people.swap) == 6
        assert all(joints[a].replace("left", "right") == joints[b] for a, b in people.swap)
        sides = [{word for i in bone for word in joints[i].split()} for bone in people.bones]
        assert len(sides) == len(joints) - 1  # a tree
        assert not any({"left", "right"} <= words for words in sides)


def test_a_set_without_names_is_neither_mirrored_nor_joined_by_bones(monkeypatch):
    tiny.use(monkeypatch, splits=("train",), side=20)
    people = poses.read(other("somebody"), "lspet", group="clip")
    assert people.joints == ("0", "1", "2", "3") and people.swap == () and people.bones == ()
    assert {split: len(x["image"]) for split, x in people.splits.items()} == {"train": 15, "validation": 5, "test": 5}
    clips = [set(x["clip"].tolist()) for x in people.splits.values()]
    assert not (clips[0] & clips[1] | clips[0] & clips[2] | clips[1] & clips[2])
    image = people.splits["test"]["image"]
    assert image.shape[1:] == (16, 16, 3) and people.splits["test"]["points"].max() <= 16  # resized
    shown = skeletons.scene(
        image[:1], people.splits["test"]["points"][:1], np.ones((1, 4), bool), np.ones((1, 4, 2)), people
    )
    rows = {"student": {"title": "alone", "shown": {"s": shown | {"points": shown["true"]}}}}
    assert len(skeletons.side_by_side("s", {"rows": rows})) > 1000 and len(skeletons.film("s", {"rows": {}})) > 100


def test_a_set_without_a_test_split_is_tested_on_its_validation_split(monkeypatch):
    tiny.use(monkeypatch, splits=("train", "validation"))
    splits = poses.read(other("somebody"), "lspet").splits
    assert (
        len(splits["test"]["image"]) == 25 and len(splits["train"]["image"]) + len(splits["validation"]["image"]) == 25
    )


def test_sets_without_points_or_of_other_joints_are_refused(monkeypatch):
    monkeypatch.setattr(data, "source", lambda *x: [{"image": np.zeros((16, 16, 3), np.uint8), "label": 1}])
    with pytest.raises(ValueError, match="somebody: expected key points"):
        poses.read(other("somebody"), "lspet")
    with pytest.raises(ValueError, match="--data-dir"):
        poses.read(types.SimpleNamespace(data_dir=None, dataset=None), "lspet")


def test_found_joints_of_clips_are_those_of_their_frames():
    rng = np.random.default_rng(0)
    true = np.float32(rng.uniform(4, 28, size=(2, 3, 4, 2)))
    mask = rng.uniform(size=(2, 3, 4)) < 0.8
    near = dense.draw_heatmaps(jnp.array(true), (8, 8))
    far = dense.draw_heatmaps(jnp.array(32 - true), (8, 8))
    heatmaps = jnp.where(jnp.arange(2)[:, None, None, None, None] == 0, near, far)
    batch = {"points": jnp.array(true), "point_mask": jnp.array(mask), "mask": jnp.array([True, False])}
    names = tuple("abcd")
    clips = poses.metrics.compute(poses.found_joints(Context({"heatmaps": heatmaps}, {}, batch, 0), names))
    assert 1 >= clips["pck_wide"] >= clips["pck"] > 0.3
    found = dense.peaks(heatmaps[0]).points
    assert clips == pytest.approx(poses.measured(np.asarray(found), {"points": true[0], "point_mask": mask[0]}, names))
