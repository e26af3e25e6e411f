"""Attributes of digits: every method builds, and unknown labels are ignored."""

import types

import numpy as np
import pytest

from experiments.classification import attributes
from jaxkd.types import Variables
from tests.experiments.classification import tiny


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.digits(monkeypatch)
        for name, value in {"LABELS": 8, "LABELED": 2, "OTHERS": 4, "TEACHER_STEPS": 2}.items():
            monkeypatch.setattr(attributes, name, value)
        yield attributes.Attributes(types.SimpleNamespace(steps=8), tmp_path_factory.mktemp("task"))


@pytest.mark.parametrize(
    "method", [name if name == "kd" else pytest.param(name, marks=pytest.mark.slow) for name in attributes.METHODS]
)
def test_a_method_builds(work, method):
    state, found = tiny.traced(work.training(method, 0, 8))
    assert ("bce" in found) == (method != "student")
    assert state.student.params["Dense_0"]["kernel"].shape == (24, 6)


def test_few_images_have_some_known_attributes(work):
    batch = next(iter(work.training("kd", 0, 8).inputs.batches()))
    known, label = np.asarray(batch["known"]), np.asarray(batch["label"])
    assert batch["labeled"].tolist() == [True] * 2 + [False] * 4
    assert not known[2:].any()
    np.testing.assert_array_equal(label == -1, ~known)
    rows = work.images.train.arrays["label"][np.asarray(batch["index"][:2])]
    np.testing.assert_array_equal(label[:2][known[:2]], attributes.TABLE[rows][known[:2]])


def test_unknown_labels_change_no_loss():
    """The value is the mean over the labeled images of the sum over their known attributes."""
    rng = np.random.default_rng(0)
    logits, label = rng.normal(size=(3, 6)).astype(np.float32), rng.integers(0, 2, (3, 6))
    known = np.array([[1, 0, 1, 0, 1, 0], [0, 1, 0, 0, 0, 1], [0] * 6], bool)
    context = attributes.jaxkd.Context({"logits": logits}, {}, {"label": np.where(known, label, -1), "known": known}, 0)
    found = attributes.BCE.apply({}, {}, context, None).value
    values = np.log1p(np.exp(np.where(label == 1, -logits, logits).astype(np.float64)))
    np.testing.assert_allclose(found, np.where(known, values, 0).sum() / 2, rtol=1e-5)


def test_the_table_says_what_digits_have():
    digits = dict(zip(attributes.ATTRIBUTES, attributes.TABLE.T, strict=True))
    assert digits["prime"].tolist() == [0, 0, 1, 1, 0, 1, 0, 1, 0, 0]
    assert len(np.unique(attributes.TABLE, axis=0)) == 9  # 5 and 7 alone are alike


def test_perfect_logits_measure_one(work, monkeypatch):
    logits = 4.0 * attributes.TABLE[work.images.test.arrays["label"]] - 2
    monkeypatch.setattr(work, "outputs", lambda *arguments: {"logits": logits})
    found = work._scores(work._student, Variables({}))
    assert found == {"map": 1.0, "f1": 1.0, "accuracy": 1.0, "exact": 1.0}
