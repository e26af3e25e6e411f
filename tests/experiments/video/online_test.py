"""Online adaptation: frames are in order, and each counts before the student adapts to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.kit.tasks import run
from experiments.video import frames, online, strips
from experiments.video.main import TASKS
from jaxkd import data
from tests import tiny
from tests.experiments.video import tiny_stream


def states(training, steps):
    """Returns the states of some first steps, and their metrics."""
    step = jax.jit(training.kd.step)
    batches, found = training.inputs.batches(), []
    batch = next(batches)
    made = [training.kd.init(jax.random.key(0), batch)]
    for _ in range(steps):
        state, reported = step(made[-1], batch)
        made.append(state)
        found.append(tiny.numbers(reported))
        batch = next(batches)
    return made, found


def test_a_stream_is_in_order(monkeypatch):
    monkeypatch.setattr(data, "source", tiny_stream.source)
    read = frames.read(tiny_stream.CONFIG)
    assert read.size == (32, 48) and read.classes == 2 and read.anchors.shape[0] == 3 * (24 + 6 + 2)
    np.testing.assert_array_equal(read.test["clip"], np.repeat([0, 1, 2], 4))
    np.testing.assert_array_equal(read.test["frame"], np.tile(np.arange(4), 3))
    found = frames.shuffled_clips(read.test, 0)
    np.testing.assert_array_equal(found["frame"], np.tile(np.arange(4), 3))
    assert sorted(found["clip"][::4]) == [0, 1, 2] and found["clip"].tolist() != read.test["clip"].tolist()
    place = int(np.flatnonzero((read.test["clip"] == found["clip"][5]) & (read.test["frame"] == found["frame"][5]))[0])
    np.testing.assert_array_equal(found["image"][5], read.test["image"][place])
    np.testing.assert_allclose(found["boxes"][5, 0, 2:] - found["boxes"][5, 0, :2], [10, 16], atol=1e-4)
    assert len(frames.shuffled_clips(read.test, 1, 5)["index"]) == 5


def test_clips_are_held_out_where_no_split_is_to_test_on(monkeypatch):
    def source(name, split, data_dir):
        if split != "train":
            raise ValueError(f"no split {split!r}")
        return tiny_stream.source(name, split, data_dir)

    monkeypatch.setattr(data, "source", source)
    read = frames.read(tiny_stream.CONFIG)
    assert set(read.test["clip"]) == {0} and set(read.train["clip"]) == {1, 2}


def test_a_set_without_clips_is_refused(monkeypatch):
    monkeypatch.setattr(data, "source", lambda *_: [{"image": np.zeros((8, 8, 3), np.uint8), "frame": 1}])
    with pytest.raises(
        ValueError, match=r"expected a set with objects, clip and frame, got .* without \['boxes', 'clip'\]"
    ):
        frames.read(tiny_stream.CONFIG)
    with pytest.raises(ValueError, match="--data-dir: expected the folder"):
        frames.read(tiny_stream.CONFIG.__class__(data_dir=None, dataset=None))


@pytest.mark.slow
def test_the_loss_of_a_detector_is_focal_and_smooth(monkeypatch):
    monkeypatch.setattr(data, "source", tiny_stream.source)
    read = frames.read(tiny_stream.CONFIG)
    count = len(read.anchors)
    rng = np.random.default_rng(0)
    logits, offsets = rng.normal(size=(1, count, 2)), rng.normal(size=(1, count, 4))
    boxes, exists = np.asarray(read.anchors[40:41])[None], np.array([[True]])
    batch = {"boxes": boxes, "box_label": np.array([[1]]), "box_mask": exists}
    context = frames.jaxkd.Context(
        {"logits": jnp.float32(logits), "offsets": jnp.float32(offsets)}, {}, jax.tree.map(jnp.asarray, batch), 0
    )
    found = frames.labeled(read).apply({}, {}, context, None).value
    matches = frames.dense.match_anchors(read.anchors, jnp.asarray(boxes))
    total = 0.0
    for i in range(count):
        if matches.ignored[0, i]:
            continue
        for k in range(2):
            on = bool(matches.matched[0, i]) and k == 1
            p = 1 / (1 + np.exp(-logits[0, i, k]))
            total -= 0.25 * (1 - p) ** 2 * np.log(p) if on else 0.75 * p**2 * np.log(1 - p)
        if matches.matched[0, i]:
            target = frames.dense.encode_boxes(jnp.asarray(boxes[0]), read.anchors[i : i + 1])[0]
            d = np.abs(offsets[0, i] - np.asarray(target))
            total += np.where(d < 1, 0.5 * d**2, d - 0.5).sum()
    assert int(matches.matched.sum()) >= 1
    np.testing.assert_allclose(found, total / int(matches.matched.sum()), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", online.METHODS)
def test_a_method_builds(monkeypatch, tmp_path, method):
    work = tiny_stream.opened(monkeypatch, tmp_path)
    training = work.training(method, 0, 9)
    batch = next(iter(training.inputs.batches()))
    state = jax.eval_shape(training.kd.init, jax.random.key(0), batch)
    after, reported = jax.eval_shape(training.kd.step, state, batch)
    assert after.opt_state["detections"]["boxes"].shape == (9, frames.MOST, 4)
    assert set(after.student.params) == {"PyramidBackbone_0", "boxes", "classes"}
    assert not jax.tree.leaves(after.student.params["PyramidBackbone_0"])
    assert {"loss", "key_frames", "updates"} <= reported.keys()
    assert ("clip" in after.opt_state["stream"]) == (method == "every_8_reset")


@pytest.mark.slow
def test_every_frame_counts_before_the_student_adapts_to_it(monkeypatch, tmp_path):
    work = tiny_stream.opened(monkeypatch, tmp_path)
    made, found = states(work.training("every_4", 0, 9), 9)
    stream = work._stream(0)
    kept = made[-1].opt_state["detections"]
    model = online.wrappers.freeze(work._student, online.FROZEN)
    for i in (0, 1, 5):
        batch = work._frames.normalize({"image": stream["image"][i : i + 1]})
        outputs, _ = model.apply(made[i].student, batch, key=None, train=False)
        expected = frames.found(work._frames, outputs)
        np.testing.assert_allclose(kept["boxes"][i], expected.boxes[0], atol=1e-3)
        np.testing.assert_allclose(kept["scores"][i], expected.scores[0], atol=1e-5)
    assert [one["key_frames"] for one in found] == [1, 0, 0, 0] * 2 + [1]
    measured = work.measure("every_4", 0, made[-1])
    assert measured["calls"] == pytest.approx(3 / 9) and measured["updates"] == pytest.approx(3 / 9)
    flops = work._flops
    assert measured["flops"] == 9 * flops["frame"] + 3 * flops["call"] + 3 * flops["update"]
    assert set(online.TASK.measures) <= measured.keys() and work.references()["teacher"]["ap"] >= 0
    # The first image's features are the same for the frozen part, whatever was learned.
    tiny.assert_equal(made[0].student.state, made[-1].student.state)


@pytest.mark.slow
def test_the_lstm_learns_what_adapting_gains(monkeypatch, tmp_path):
    work = tiny_stream.opened(monkeypatch, tmp_path, UPDATES=2, RATE=1e-4)
    known = work._gains(0)
    assert known["features"].shape == (8, 2) and known["gains"].shape == (8,)
    assert (known["gains"] > 0).mean() > 0.8  # a small step lowers the loss of its own frame
    params, threshold = work._selector(0)
    logits = online.streams.selector_logits(params, jnp.asarray(known["features"])[None])
    assert 0 < (jax.nn.sigmoid(logits) > threshold).sum() <= 2


@pytest.mark.slow
def test_the_command_writes_figures(monkeypatch, tmp_path):
    task = online.TASK._replace(open=lambda config, folder: tiny_stream.opened(monkeypatch, folder))
    monkeypatch.setitem(TASKS, "jhmdb_video", task)
    arguments = [
        "jhmdb_video",
        "--steps",
        "5",
        "--seeds",
        "1",
        "--methods",
        "every_8",
        "oracle",
        "--out",
        str(tmp_path),
    ]
    assert run.cli("video", TASKS, arguments) == 0
    for name in ("calls", "strip", "gains", "curves"):
        assert (tmp_path / "video" / "jhmdb_video" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "video" / "jhmdb_video" / "report.md").read_text()
    assert "teacher calls" in text and "frozen student" in text


def test_figures_of_unfinished_results():
    for draw in (strips.strip, strips.calls):
        assert draw({"rows": {}, "references": {}}).startswith(b"\x89PNG")
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    np.testing.assert_array_equal((255 * strips.decoded(strips.encoded(image))).round(), image)
    assert strips.boxes(np.array([[0.0, 1.04, 2, 3], [5, 5, 6, 6]]), np.array([True, False])) == [[0.0, 1.0, 2.0, 3.0]]
