"""The distillation token: every method builds, and each classifier learns what the paper says."""

import numpy as np
import pytest

import jaxkd
from experiments.classification import deit
from tests.experiments.classification import tiny


@pytest.fixture
def work(monkeypatch, tmp_path):
    tiny.digits(monkeypatch)
    sizes = deit.SIZES["digits"]._replace(teacher="resnet8", shown=20, batch=4)
    monkeypatch.setitem(deit.SIZES, "digits", sizes)
    return deit.Deit(None, tmp_path)


@pytest.mark.parametrize("method", [pytest.param(name, marks=pytest.mark.slow) for name in deit.METHODS])
def test_a_method_builds(work, method):
    state, metrics = tiny.traced(work.training(method, 0, 8))
    assert "loss" in metrics
    assert ("distillation_classifier" in state.student.params) == method.startswith("token")


def cross_entropy(logits, label):
    logits = np.asarray(logits, np.float64)
    return np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(label)), label]


def test_the_tokens_learn_labels_and_the_teachers_labels():
    """``(CE(z_class, y) + CE(z_distillation, argmax z_t)) / 2``, equation 3 of the paper, on a token each."""
    rng = np.random.default_rng(0)
    student = {name: rng.normal(size=(6, 10)).astype(np.float32) for name in ("class_logits", "distillation_logits")}
    teacher = {"logits": rng.normal(size=(6, 10)).astype(np.float32)}
    teacher["label"] = teacher["logits"].argmax(-1)
    label = rng.integers(0, 10, 6)
    context = jaxkd.Context(student, teacher, {"label": label}, 0)
    found = deit.OBJECTIVES["token_hard"].apply({}, {}, context, None).value
    own = cross_entropy(student["class_logits"], label)
    taught = cross_entropy(student["distillation_logits"], teacher["label"])
    np.testing.assert_allclose(found, (own + taught).mean() / 2, rtol=1e-5)


@pytest.mark.slow
def test_both_tokens_are_measured(work):
    state, metrics = tiny.trained(work.training("token_hard", 0, 8))
    assert np.isfinite(float(metrics["loss"].sum))
    found = work.measure("token_hard", 0, state)
    assert {"accuracy", "agreement", "class_accuracy", "distillation_accuracy"} <= set(found)
