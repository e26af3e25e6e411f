"""Sentiment: every method builds, and the layers that it begins with are the teacher's."""

import jax
import numpy as np
import pytest

from experiments.kit.tasks import minilm
from experiments.language import sst
from tests.experiments.language import tiny

encoder = tiny.encoder


@pytest.fixture
def work(monkeypatch, tmp_path, encoder):
    tiny.sources(monkeypatch, lambda name, rng: {"sentence": tiny.sentence(rng), "label": int(rng.integers(2))})
    monkeypatch.setattr(sst, "LENGTH", 8)
    monkeypatch.setattr(sst, "BATCH", 8)
    monkeypatch.setattr(sst, "LABELED", 4)
    opened = sst.Sst(tiny.CONFIG, tmp_path)
    batch = next(iter(opened._loader("train").batches()))
    opened._taught = opened._teacher.init(jax.random.key(3), batch)  # as if it had been trained
    return opened


@pytest.mark.parametrize(
    "method",
    [
        name if name in ("layers_tinybert_few", "layers_mobilebert") else pytest.param(name, marks=pytest.mark.slow)
        for name in sst.METHODS
    ],
)
def test_a_method_builds(work, method):
    state, metrics = tiny.traced(work.training(method, 0, 8))
    assert "loss" in metrics
    assert ("kd" in " ".join(metrics)) == (sst.PARTS[method][1] != "alone")
    assert len(state.student.params["layers"]) == sst.LAYERS


def test_a_student_begins_with_layers_of_the_encoder(work, encoder):
    training = work.training("layers_few", 1, 8)
    batch = next(iter(training.inputs.batches()))
    assert batch["labeled"].tolist() == [True] * 4 + [False] * 4
    start = training.kd.init(jax.random.key(0), batch).student.params
    taught = encoder[1].params
    for own, (place, of) in zip((0, 1), ((0, 0), (1, 3)), strict=True):
        assert own == place
        jax.tree.map(np.testing.assert_array_equal, start["layers"][own], taught["layers"][of])
    assert set(start) == {*taught, "classifier"}


@pytest.mark.slow
def test_a_student_learns_from_few_labels(work):
    state, loss = tiny.trained(work.training("layers_few", 1, 8))
    assert np.isfinite(loss)
    found = work.measure("layers_few", 1, state)
    assert 0 <= found["accuracy"] <= 1 and 0 <= found["agreement"] <= 1


def test_methods_are_compared_with_their_own_student_alone():
    assert sst.METHODS["layers_kd_few"].baseline == "layers_few"
    assert sst.METHODS["layers_few"].baseline == "student_few"
    assert sst.METHODS["random_kd"].baseline == "student"
    assert {method.baseline for method in sst.METHODS.values()} <= set(sst.METHODS)


def test_outputs_of_a_set_do_not_depend_on_the_batches(work):
    test = work._sets["test"]
    whole = minilm.outputs_of(work._teacher, work._taught, test, "logits")
    assert whole.shape == (40, 2)
    np.testing.assert_allclose(minilm.outputs_of(work._teacher, work._taught, test, "logits", 16), whole, atol=1e-6)


@pytest.mark.slow
def test_the_teacher_is_trained_once(monkeypatch, tmp_path, work):
    monkeypatch.setattr(sst, "TEACHER_STEPS", 2)
    del work._taught
    reference = work.references()["MiniLM, fine-tuned"]
    assert 0 <= reference["accuracy"] <= 1 and reference["parameters"] > 0
    first = work._taught
    del work._taught
    monkeypatch.setattr(sst, "TEACHER_STEPS", 0)  # it is read from its file
    jax.tree.map(np.testing.assert_array_equal, work._taught.params, first.params)
