"""DINO on digits: every method builds, teachers average, and features are measured."""

import types

import jax
import numpy as np
import pytest

from experiments.classification import dino
from tests.experiments.classification import tiny


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.digits(monkeypatch)
        sizes = {"LARGE": (4, 6), "SMALL": (2, 3), "LABELS": 20, "LABELED": 2, "BATCH": 4, "CROPS": 1, "PROTOTYPES": 8}
        for name, value in sizes.items():
            monkeypatch.setattr(dino, name, value)
        monkeypatch.setattr(dino.networks, "trained_once", lambda path, kd, train, *a, **options: started(kd, train))
        yield dino.Dino(types.SimpleNamespace(steps=8), tmp_path_factory.mktemp("task"))


def started(kd, train):
    return kd.init(jax.random.key(0), next(iter(train.batches()))).student


@pytest.mark.parametrize(
    "method", [name if name == "dino" else pytest.param(name, marks=pytest.mark.slow) for name in dino.METHODS]
)
def test_a_method_builds(work, method):
    state, found = tiny.traced(work.training(method, 0, 8))
    without_labels = method in ("dino", "uncentered", "small_dino")
    assert ("dino/marginal_entropy" in found) == without_labels
    if without_labels:
        assert jax.tree.structure(state.teacher) == jax.tree.structure(state.student)


@pytest.mark.slow
def test_the_teacher_follows_and_the_center_moves(work):
    training = work.training("dino", 0, 8)
    batch = next(iter(training.inputs.batches()))
    before = training.kd.init(jax.random.key(0), batch)
    after, found = jax.jit(training.kd.step)(before, batch)
    assert np.abs(after.objective.state["dino"]["center"]).max() > 0
    old, new, average = (
        np.asarray(x.params["dino"]["prototypes"]) for x in (before.student, after.student, after.teacher)
    )
    np.testing.assert_allclose(average, 0.99 * old + 0.01 * new, rtol=1e-5, atol=1e-7)
    assert np.isfinite(float(found["loss"].sum))
    assert set(work.measure("dino", 0, after)) == set(dino.TASK.measures)


@pytest.mark.slow
def test_references_have_every_measure(work):
    for measures in work.references().values():
        assert set(measures) == set(dino.TASK.measures)
