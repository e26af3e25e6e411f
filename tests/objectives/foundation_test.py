"""Features of foundation models: values, statistics over a training, maps of other sizes, errors."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Context, objectives
from tests.objectives import plain

ERF = np.vectorize(math.erf)
PATHS = ("student/f", "teacher/f")


def linear_weights(old, new):
    """Weights [new, old] of a linear interpolation, whose triangle covers two old or two new positions."""
    centers, width = (np.arange(new) + 0.5) * old / new - 0.5, max(old / new, 1)
    weights = np.maximum(1 - np.abs(np.arange(old) - centers[:, None]) / width, 0)
    return weights / weights.sum(1, keepdims=True)


def head(params, x):
    x = plain.dense(params["hidden"], x)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * params["norm"]["scale"] + params["norm"]["bias"]
    return plain.dense(params["output"], x * (1 + ERF(x / math.sqrt(2))) / 2)


def distances(s, t):
    cosine = 1 - (s * t).sum(-1) / np.linalg.norm(s, axis=-1) / np.linalg.norm(t, axis=-1)
    error = np.abs(s - t)
    return cosine, np.where(error < 1, error**2 / 2, error - 0.5).mean(-1)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ((3, 4, 2, 5), (3, 2, 4, 6)),  # a map that is larger on one axis and smaller on the other
        pytest.param((3, 7, 5), (3, 7, 6), marks=pytest.mark.slow),
        pytest.param((3, 5), (3, 6), marks=pytest.mark.slow),
    ],
)
def test_values_equal_the_formulas(ours, theirs):
    given = plain.context({"f": ours}, {"f": theirs})
    mean, std = np.linspace(-1, 1, 6), np.linspace(0.5, 2, 6)
    objective = objectives.foundation_features(*PATHS, cosine=0.7, smooth_l1=0.2, hidden_size=4, mean=mean, std=std)
    params, state = plain.made(objective, given)
    assert not state and params["hidden"]["kernel"].shape == (5, 4)
    s, t = head(plain.f64(params), np.float64(given.student["f"])), (np.float64(given.teacher["f"]) - mean) / std
    if len(ours) == 4:
        rows, columns = (linear_weights(ours[axis], theirs[axis]) for axis in (1, 2))
        s = np.einsum("ih,jw,bhwc->bijc", rows, columns, s)
    out = objective.apply(params, state, given, None)
    cosine, smooth = (x.mean() for x in distances(s, t))
    np.testing.assert_allclose(out.value, 0.7 * cosine + 0.2 * smooth, rtol=1e-4)
    np.testing.assert_allclose(out.metrics["cosine"].sum / out.metrics["cosine"].count, cosine, rtol=1e-4)


@pytest.mark.parametrize("tokens", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_statistics_are_those_of_all_unmasked_features_so_far(tokens):
    rng = np.random.default_rng(0)
    objective = objectives.foundation_features(*PATHS)
    steps, seen = [], []
    for size, scale in ((4, 1.0), (4, 5.0), (4, 0.1)):
        teacher = (rng.normal(size=(size, 3, 2)) * scale + scale).astype(np.float32)
        mask = rng.random((size, 3) if tokens else size) < 0.6
        mask.flat[0] = True
        seen.append(teacher[mask].reshape(-1, 2))
        teacher[~mask] = np.nan  # padding
        steps.append(Context({"f": np.ones((size, 3, 4), np.float32)}, {"f": teacher}, {"mask": mask}, 0))
    params, state = objective.init(jax.random.key(0), jax.eval_shape(lambda: steps[0]))
    apply = jax.jit(lambda state, given: objective.apply(params, state, given, jax.random.key(1)))
    for number, given in enumerate(steps, 1):
        out = apply(state, given)
        state, whole = out.state, np.concatenate(seen[:number]).astype(np.float64)
        np.testing.assert_allclose(state["mean"], whole.mean(0), rtol=1e-5)
        np.testing.assert_allclose(state["var"], whole.var(0), rtol=1e-5)
        assert state["count"] == len(whole) and np.isfinite(out.value)
    evaluated = objective.apply(params, state, steps[-1], None)
    np.testing.assert_array_equal(evaluated.state["mean"], state["mean"])
    np.testing.assert_allclose(evaluated.value, out.value, rtol=1e-5)  # this step's features were included


def test_before_the_first_step_features_are_as_they_are():
    given = plain.context({"f": (3, 5)}, {"f": (3, 6)})
    objective = objectives.foundation_features(*PATHS, cosine=1.0, smooth_l1=0.0)
    params, state = objective.init(jax.random.key(0), jax.eval_shape(lambda: given))
    want, _ = distances(head(plain.f64(params), np.float64(given.student["f"])), np.float64(given.teacher["f"]))
    out = objective.apply(params, state, given, None)
    np.testing.assert_allclose(out.value, want.mean(), rtol=1e-4)
    assert list(out.metrics) == ["cosine", "cosine/weight"]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected a weight other than 0"):
        objectives.foundation_features(*PATHS, cosine=0, smooth_l1=0.0)
    with pytest.raises(ValueError, match="expected both mean and std"):
        objectives.foundation_features(*PATHS, mean=jnp.zeros(3))
    with pytest.raises(ValueError, match="hidden_size: expected a positive number"):
        objectives.foundation_features(*PATHS, hidden_size=0)

    def init(objective, ours, theirs):
        given = plain.context({"f": ours}, {"f": theirs})
        return objective.init(jax.random.key(0), jax.eval_shape(lambda: given))

    with pytest.raises(ValueError, match=r"of the teacher's 6 channels, got \[5\] and \[5\]"):
        init(objectives.foundation_features(*PATHS, mean=jnp.zeros(5), std=jnp.ones(5)), (3, 5), (3, 6))
    for theirs in ((3, 4, 6), (2, 2, 2, 6), (3, 6)):
        with pytest.raises(ValueError, match=r"expected two maps .* got \[3, 2, 2, 5\] for the student"):
            init(objectives.foundation_features(*PATHS), (3, 2, 2, 5), theirs)
