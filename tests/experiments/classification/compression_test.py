"""Compression: every point is built, saved and measured, and begins with the teacher's channels where it says so."""

import types

import jax
import numpy as np
import pytest

from experiments.classification import compression
from jaxkd import weights
from tests.experiments.classification import tiny


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        tiny.digits(monkeypatch)
        sizes = compression.Sizes(8, (4, 4, 4, 8), 4, 2, 0.05)
        monkeypatch.setitem(compression.SIZES, "digits", sizes)
        yield compression.Compression("digits", types.SimpleNamespace(steps=8), tmp_path_factory.mktemp("task"))


@pytest.mark.parametrize("method", [pytest.param(name, marks=pytest.mark.slow) for name in compression.METHODS])
def test_a_method_builds(work, method):
    state, found = tiny.traced(work.training(method, 0, 8))
    assert ("kd" in found) == ("kd" in method)
    assert state.student.params["ResNetStem_0"]["Conv_0"]["kernel"].shape[-1] == 4 // compression.STEPS[method].divisor


@pytest.mark.slow
def test_a_pruned_student_begins_with_channels_of_the_teacher(work):
    training = work.training("half_pruned_kd_4", 0, 8)
    begun = training.kd.init(jax.random.key(3), next(iter(training.inputs.batches()))).student
    large = np.asarray(work._taught.params["ResNetStem_0"]["Conv_0"]["kernel"])
    small = np.asarray(begun.params["ResNetStem_0"]["Conv_0"]["kernel"])
    found = [next(i for i in range(4) if np.array_equal(large[..., i], small[..., j])) for j in range(2)]
    assert found == sorted(found)


@pytest.mark.slow
def test_points_are_measured_from_their_files(work):
    references = work.references()
    sizes = [references[name]["kilobytes"] for name in ("teacher", "teacher, 8 bits, not trained")]
    assert sizes[0] > sizes[1] > references["teacher, 4 bits, not trained"]["kilobytes"] > 0
    assert references["teacher"]["agreement"] == 1.0
    assert references["half, pruned, not trained"]["parameters"] < references["teacher"]["parameters"]


def test_a_file_of_few_bits_holds_rounded_weights():
    variables = compression.Variables({"w": jax.numpy.linspace(-1.0, 1.0, 4096).reshape(64, 64)})
    stored, size = compression.saved(variables, 4)
    assert len(np.unique(stored.params["w"])) <= 16 * 16  # 16 values in each of 16 buckets
    assert size == pytest.approx(4096 / 2, abs=600)
    whole, larger = compression.saved(variables, 32)
    np.testing.assert_array_equal(whole.params["w"], variables.params["w"])
    assert larger > 4 * 4096
    assert weights.flatten(stored).keys() == weights.flatten(variables).keys()


def test_the_figure_has_every_point():
    row = {"accuracy": {"mean": 0.5, "half": 0.1}, "kilobytes": {"mean": 3.0, "half": 0.0}}
    rows = {name: {"title": name, "measures": row} for name in ("student", "kd", "student@100")}
    references = {"teacher": {"accuracy": 0.9, "kilobytes": 300.0}}
    assert compression.pareto({"rows": rows, "references": references}).startswith(b"\x89PNG")
    assert compression.pareto({"rows": {}, "references": {}}).startswith(b"\x89PNG")
