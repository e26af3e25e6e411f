"""Features of foundation models: every method builds, with the labels of few images."""

import numpy as np
import pytest

from experiments.classification import foundation
from tests.experiments.classification import tiny


@pytest.fixture
def work(monkeypatch, tmp_path):
    tiny.digits(monkeypatch)
    sizes = foundation.SIZES["digits"]
    small = {**sizes.teachers, "cnn": "resnet8"}
    monkeypatch.setitem(foundation.SIZES, "digits", sizes._replace(teachers=small, shown=20, batch=(2, 4)))
    return foundation.Foundation(None, tmp_path)


@pytest.mark.parametrize("method", [pytest.param(name, marks=pytest.mark.slow) for name in foundation.METHODS])
def test_a_method_builds(work, method):
    state, metrics = tiny.traced(work.training(method, 0, 8))
    setting = foundation.SETTINGS[method]
    features = {f"{kind}_{name}" for kind in setting.teachers for name in ("map", "summary")}
    assert "ce" in metrics
    assert set(state.objective.params) == features  # a head for each feature of each teacher
    assert set(state.objective.state) == (set() if setting.hint else features)


def test_few_images_have_labels(work):
    training = work.training("student", 1, 8)
    for batch, _ in zip(training.inputs.batches(), range(3), strict=False):
        assert batch["labeled"].tolist() == [True] * 2 + [False] * 4
        assert (np.asarray(batch["label"][2:]) == -1).all()
        known = work.images.train.arrays["label"][np.asarray(batch["index"][:2])]
        np.testing.assert_array_equal(batch["label"][:2], known)


@pytest.mark.slow
def test_a_student_learns_from_two_teachers(work):
    state, metrics = tiny.trained(work.training("vit_from_both", 0, 8))
    assert np.isfinite(float(metrics["loss"].sum))
    found = work.measure("vit_from_both", 0, state)
    assert {"accuracy", "agreement_cnn", "agreement_vit"} <= set(found)
    assert set(work.references()) == {"ResNet", "ViT"}


def test_students_are_compared_with_their_own_architecture_alone():
    assert foundation.METHODS["cnn_from_both"].baseline == "student"
    assert foundation.METHODS["vit_from_both"].baseline == foundation.METHODS["vit"].baseline == "vit"
