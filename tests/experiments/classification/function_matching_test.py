"""Function matching: every method builds, and teacher and student see the images that it says."""

import jax
import numpy as np
import pytest

from experiments.classification import function_matching
from experiments.classification.main import TASKS
from tests.experiments.classification import tiny


@pytest.fixture
def work(monkeypatch, tmp_path):
    tiny.digits(monkeypatch)
    sizes = function_matching.SIZES["digits"]._replace(teacher="resnet8", shown=20, batch=4)
    monkeypatch.setitem(function_matching.SIZES, "digits", sizes)
    return function_matching.FunctionMatching(None, tmp_path)


@pytest.mark.parametrize(
    "method",
    [
        name if name == "student_mixed" else pytest.param(name, marks=pytest.mark.slow)
        for name in function_matching.METHODS
    ],
)
def test_a_method_builds(work, method):
    training = work.training(method, 0, 8)
    setting = function_matching.SETTINGS[method]
    assert training.steps == (8 * function_matching.LONG if setting.long else 8)
    assert "loss" in tiny.traced(training)[1]


def test_the_views_are_those_that_the_methods_name(work):
    batch = next(iter(work.training("student", 0, 8).inputs.batches()))
    found = {}
    for kind in ("same", "mixed", "independent", "fixed"):
        found[kind] = jax.jit(function_matching.views_of(kind, 0, work.images))(dict(batch))
    assert "view" not in found["same"] and "view" not in found["mixed"]
    for kind in ("independent", "fixed"):
        np.testing.assert_allclose(found[kind]["image"], found["same"]["image"], atol=1e-6)
        assert not np.allclose(found[kind]["view"], found[kind]["image"])
    np.testing.assert_allclose(found["fixed"]["view"], work.images.normalize(batch)["image"], atol=1e-6)
    share = np.asarray(found["mixed"]["share"])[:, None, None, None]
    view = np.asarray(found["same"]["image"])
    np.testing.assert_allclose(found["mixed"]["image"], share * view + (1 - share) * np.roll(view, -1, 0), atol=1e-5)
    np.testing.assert_allclose(found["mixed"]["soft_label"].sum(-1), 1, rtol=1e-6)


@pytest.mark.slow
def test_a_teacher_sees_its_own_view(work):
    state, metrics = tiny.trained(work.training("independent", 0, 8))
    assert np.isfinite(float(metrics["loss"].sum))
    found = work.measure("independent", 0, state)
    assert 0 <= found["accuracy"] <= 1 and 0 <= found["agreement"] <= 1
    assert work.references()["teacher"]["parameters"] > 0


def test_tasks_have_a_student_alone():
    for task in TASKS.values():
        assert "student" in task.methods
        assert {method.baseline for method in task.methods.values()} <= set(task.methods)
