"""A tenth of the labels: every method builds, and learns from no label that it must not know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.speech import few, recognizers, sounds
from tests.experiments.language.tiny import traced
from tests.experiments.speech import tiny


@pytest.fixture
def work(monkeypatch, tmp_path):
    sizes = {"LABELED": 2, "OTHERS": 3, "FEW": 6, "TRAIN": 9, "VALIDATION": 6, "TEST": 6, "HELD_OUT": 6, "BEAMS": 3}
    tiny.use(monkeypatch, few, SHARE=0.2, **sizes)
    for name in ("TEACHER", "STUDENT"):
        monkeypatch.setattr(few, name, recognizers.lstm(4, 1))
    opened = few.Few(tiny.CONFIG, tmp_path)
    batch = {name: opened._sets["test"][name] for name in ("features", "frame_mask")}
    drawn = few.TEACHER.init(jax.random.key(3), batch)
    monkeypatch.setattr(opened, "_taught", lambda seed: drawn)
    return opened


@pytest.mark.slow
@pytest.mark.parametrize("method", few.METHODS)
def test_a_method_builds(work, method):
    state, found = traced(work.training(method, 0, 8))
    assert {"head", "layers"} <= set(state.student.params)
    assert ("pseudo" in found) == (method in ("pseudo", "pseudo_all", "both"))
    assert ("kd" in found) == (method in ("soft", "both"))


@pytest.mark.slow
def test_labeled_recordings_are_few_and_of_every_digit(work):
    first, again, other = (work._few(2, seed).take(range(6))["parts"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(np.unique(np.asarray(work._few(2, 0).arrays.tables["index"]))) == 20  # of 100, two a digit


@pytest.mark.slow
def test_transcripts_of_recordings_without_labels_are_never_seen(work, monkeypatch):
    seen = {}

    def distill(student, teacher, objective, steps, prepare):
        seen["prepare"] = prepare

    monkeypatch.setattr(recognizers, "distill", distill)
    pseudo = work._pseudo(0)
    batch = next(iter(work.training("pseudo", 0, 8).inputs.batches()))
    found = seen["prepare"](batch)
    np.testing.assert_array_equal(found["label"][:2], batch["label"][:2])
    index = np.asarray(batch["index"])[2:]
    for name in ("label", "label_mask"):
        np.testing.assert_array_equal(found[name][2:], pseudo[name][index])
    np.testing.assert_array_equal(found["confident"], [False, False, *pseudo["confident"][index]])
    work.training("soft", 0, 8)
    assert not jnp.any(seen["prepare"](batch)["label"][2:]) and found["labeled"].tolist() == [True] * 2 + [False] * 3


@pytest.mark.slow
def test_measures(work):
    training = work.training("student", 0, 8)
    state = training.kd.init(jax.random.key(0), next(iter(training.inputs.batches())))
    work._pseudo(0)["confident"][:] = True
    assert set(few.TASK.measures) <= work.measure("student", 0, state).keys()
    assert len(work.samples("student", state)) == 6 and work.references()
    assert sounds.words(np.array([1]), np.array([True])) == "zero"
