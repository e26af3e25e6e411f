"""Poses in clips: consecutive frames, one augmentation of all of them, and a whole run on a made-up set."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kit.tasks import poses
from experiments.video import main, pose
from tests.experiments.pose import tiny


@pytest.fixture
def small(monkeypatch):
    tiny.use(monkeypatch)
    dynamic = {"widths": (4,), "channels": 3, "kernel_size": 3, "initializer_widths": (4,), "initializer_channels": 3}
    settings = {"LARGE": ((4, 6), 4), "SMALL": ((4,), 3), "DYNAMIC": dynamic, "TEACHER_STEPS": 2, "BATCH": 2}
    for name, value in settings.items():
        monkeypatch.setattr(pose, name, value)


def test_pieces_are_consecutive_frames_of_one_clip():
    rng = np.random.default_rng(0)
    clip = np.repeat([7, 3], [7, 6])
    frame = np.concatenate([np.arange(7), [0, 1, 2, 3, 5, 6]])  # one frame of the second clip is missing
    order = rng.permutation(13)
    arrays = {"clip": clip[order], "frame": frame[order], "image": (100 * clip + frame)[order]}
    arrays |= {name: arrays["image"] for name in ("points", "point_mask")}
    found = pose.clips(arrays, 3)
    assert found["image"].tolist() == [[300, 301, 302], [700, 701, 702], [703, 704, 705]]
    assert found["clip"].tolist() == [3, 7, 7]
    with pytest.raises(ValueError, match="'clip' and 'frame'"):
        pose.clips({"image": clip})
    with pytest.raises(ValueError, match="expected 9 consecutive frames"):
        pose.clips(arrays, 9)


@pytest.mark.slow
def test_frames_of_a_clip_move_alike(small, tmp_path):
    work = pose.Videos(tiny.CONFIG, tmp_path)
    batch = next(iter(work._inputs(0).batches()))
    still = {**batch, **{n: jnp.repeat(batch[n][:, :1], 5, axis=1) for n in ("image", "points", "point_mask")}}
    found = poses.moved(work.people, 0)(still)
    for name in ("image", "points", "point_mask", "heatmaps"):
        assert jnp.all(found[name] == found[name][:, :1]), name
    assert not jnp.all(found["points"][0] - still["points"][0] == found["points"][1] - still["points"][1])
    assert found["heatmaps"].shape == (2, 5, 4, 4, 15)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--dataset", "somebody"]])
def test_a_whole_run(small, tmp_path, options):
    names = ["student", "dynamic_temporal_kd"]
    arguments = ["jhmdb_pose", "--data-dir", "data", "--out", str(tmp_path), "--steps", "2", "--seeds", "1"]
    assert main.cli([*arguments, "--no-equal-cost", "--methods", *names, *options]) == 0
    folder = tmp_path / "video" / ("jhmdb_pose-somebody" if options else "jhmdb_pose")
    results = json.loads((folder / "results.json").read_text())
    assert list(results["rows"]) == names
    for one in results["rows"].values():
        assert 0 <= one["measures"]["pck"]["mean"] <= 1 and one["measures"]["mflops"]["mean"] > 0
    for figure in pose.TASK.figures:
        assert (folder / f"{figure}.png").stat().st_size > 5000
