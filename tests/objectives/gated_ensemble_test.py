"""ONE: values and gradients against NumPy in float64, gradient routing, masks and extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxkd import losses, objectives, term
from jaxkd.objectives import gated_ensemble
from jaxkd.types import Context, ObjectiveVars
from tests.objective_runs import double
from tests.schemes.peers_toy import CE, gradients, numeric

RNG = np.random.default_rng(0)
T = 3.0
KL = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=T, weight=0.7)
MEMBERS = {"model": "", "b": "b", "c": "c"}
NAMES = ("logits", "b/logits", "c/logits", "f")
STUDENT = {name: RNG.normal(0, 2, (6, 2, 2, 3) if name == "f" else (6, 4)) for name in NAMES}
LABELS = np.array([0, 1, 2, 3, 0, 1], np.int32)
OBJECTIVE = gated_ensemble(MEMBERS, "student/f", own=CE, taught=KL)


def context(student=STUDENT, **batch):
    return Context(student, {}, {"label": LABELS, **batch}, jnp.int32(0))


def started():
    made = OBJECTIVE.init(jax.random.key(0), context(jax.tree.map(np.float32, STUDENT)))
    gate = {"kernel": RNG.normal(size=(3, 3))}
    norm = {"scale": RNG.uniform(0.5, 2, 3), "bias": RNG.normal(size=3)}
    assert jax.tree.map(np.shape, made.params["parts"]) == jax.tree.map(np.shape, {**gate, "norm": norm})
    return ObjectiveVars({"parts": {**gate, "norm": norm}}, jax.tree.map(np.asarray, made.state))


VARIABLES = started()


def reference(params, student, held=None, labels=LABELS):
    """Equation 8; ``held`` are the teaching logits, by default those of the ensemble."""
    energy = student["f"].mean(axis=(1, 2)) @ params["kernel"]
    energy = (energy - energy.mean(0)) / np.sqrt(energy.var(0) + 1e-5) * params["norm"]["scale"] + params["norm"][
        "bias"
    ]
    gate = softmax(np.maximum(energy, 0), axis=1)
    branches = [student[name] for name in NAMES[:3]]
    ensemble = sum(gate[:, i, None] * z for i, z in enumerate(branches))
    rows = np.arange(len(labels))
    total = -sum(log_softmax(z, axis=1)[rows, labels] for z in [ensemble, *branches])
    target = log_softmax((ensemble if held is None else held) / T, axis=1)
    for z in branches:
        total = total + 0.7 * T**2 * np.sum(np.exp(target) * (target - log_softmax(z / T, axis=1)), axis=1)
    return total.mean(), ensemble


@pytest.mark.slow
def test_value_and_gradients_equal_numpy_reference():
    with jax.enable_x64(True):
        value, (by_params, by_student) = gradients(OBJECTIVE, double(VARIABLES), context(double(STUDENT)))
    expected, ensemble = reference(VARIABLES.params["parts"], STUDENT)
    assert float(value) == pytest.approx(expected, rel=1e-10)
    params = VARIABLES.params["parts"]
    for name in NAMES:
        slope = numeric(lambda x, name=name: reference(params, {**STUDENT, name: x}, ensemble)[0], STUDENT[name])
        np.testing.assert_allclose(by_student[name], slope, atol=1e-7)
    slope = numeric(lambda x: reference({**params, "kernel": x}, STUDENT, ensemble)[0], params["kernel"])
    np.testing.assert_allclose(by_params["parts"]["kernel"], slope, atol=1e-7)
    assert np.abs(slope).max() > 1e-3


@pytest.mark.slow
def test_gate_receives_no_gradient_from_distillation():
    only_taught = gated_ensemble(
        MEMBERS, "student/f", own=term(losses.cross_entropy, "student/logits", "batch/label", weight=0.0), taught=KL
    )
    _, (by_params, by_student) = gradients(only_taught, VARIABLES, context())
    assert all((x == 0).all() for x in jax.tree.leaves(by_params))
    assert (by_student["f"] == 0).all()
    assert (by_student["b/logits"] != 0).any()


@pytest.mark.slow
def test_masking_equals_dropping():
    keep = np.array([True, False, True, True, False, True])
    dropped = {name: x[keep].astype(np.float32) for name, x in STUDENT.items()}
    expected = OBJECTIVE.apply(
        VARIABLES.params, VARIABLES.state, context(dropped, label=LABELS[keep]), jax.random.key(0)
    )
    for garbage in (np.nan, np.inf, 1e30):
        spoiled = {name: x.astype(np.float32) for name, x in STUDENT.items()}
        for x in spoiled.values():
            x[~keep] = garbage
        masked = context(spoiled, mask=keep)
        found = OBJECTIVE.apply(VARIABLES.params, VARIABLES.state, masked, jax.random.key(0))
        np.testing.assert_allclose(found.value, expected.value, rtol=1e-5)
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found.state, expected.state)
        _, (by_params, by_student) = gradients(OBJECTIVE, VARIABLES, masked)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((by_params, by_student)))
        assert all((x[~keep] == 0).all() for x in by_student.values())


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e4, 0.0])
def test_extreme_inputs_are_finite(scale):
    student = {name: np.float32(scale) * np.sign(x).astype(np.float32) for name, x in STUDENT.items()}
    found = gradients(OBJECTIVE, VARIABLES, context(student))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    nothing = context(student, mask=np.zeros(6, bool))
    assert float(gradients(OBJECTIVE, VARIABLES, nothing)[0]) == 0
    excluded = {
        name: x if name == "f" else np.where(np.arange(4) == (LABELS[:, None] + 1) % 4, -np.inf, x)
        for name, x in STUDENT.items()
    }
    found = gradients(OBJECTIVE, VARIABLES, context(jax.tree.map(np.float32, excluded)))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


@pytest.mark.slow
def test_without_hold_the_gradient_of_distillation_reaches_the_gate_and_all_branches():
    """By finite differences in float64 of the value, whose ensemble is not held."""
    none = term(losses.cross_entropy, "student/logits", "batch/label", weight=0.0)
    free = gated_ensemble(MEMBERS, "student/f", own=none, taught=KL, hold=False)
    with jax.enable_x64(True):
        variables, student = double(VARIABLES), double(STUDENT)
        value, (by_params, by_student) = gradients(free, variables, context(student))
        held = gradients(gated_ensemble(MEMBERS, "student/f", own=none, taught=KL), variables, context(student))
        assert float(value) == pytest.approx(float(held[0]), rel=1e-12)
        for name in NAMES:
            at = np.array(student[name])
            place, step = (1,) + (0,) * (at.ndim - 1), np.zeros_like(at)
            step[place] = 1e-5
            up, down = (gradients(free, variables, context({**student, name: at + s * step}))[0] for s in (1, -1))
            np.testing.assert_allclose(by_student[name][place], (up - down) / 2e-5, rtol=1e-6, atol=1e-9)
    assert max(np.abs(x).max() for x in jax.tree.leaves(by_params["parts"]["kernel"])) > 1e-3
    assert np.abs(by_student["b/logits"] - held[1][1]["b/logits"]).max() > 1e-3


def test_gate_accepts_vectors_and_objectives_with_parameters():
    """The gate reads vectors as well, and `taught` may have parameters, separate for each branch."""
    student = {**{name: x.astype(np.float32) for name, x in STUDENT.items()}, "f": np.ones((6, 3), np.float32)}
    learned = gated_ensemble(MEMBERS, "student/f", own=CE, taught=objectives.curriculum_temperature())
    made = learned.init(jax.random.key(0), context(student))
    assert sorted(made.params["objective"]["taught"]) == ["b", "c", "model"]
    out = learned.apply(made.params, made.state, context(student), None)
    assert out.state.keys() == made.state.keys()
    jax.tree.map(np.testing.assert_array_equal, out.state, made.state)  # an evaluation keeps the state


def test_invalid_members_and_features_raise():
    with pytest.raises(ValueError, match="got none"):
        gated_ensemble({}, "student/f", own=CE, taught=KL)
    with pytest.raises(ValueError, match="one named 'ensemble'"):
        gated_ensemble({"ensemble": ""}, "student/f", own=CE, taught=KL)
    other = {**STUDENT, "b/logits": np.ones((6, 5))}
    with pytest.raises(ValueError, match=r"logits of one shape.*\[6, 5\]"):
        OBJECTIVE.init(jax.random.key(0), context(other))
    with pytest.raises(ValueError, match="'g'"):
        gated_ensemble(MEMBERS, "student/g", own=CE, taught=KL).init(jax.random.key(0), context())
    with pytest.raises(ValueError, match=r"student/f: expected a floating-point.*int64"):
        OBJECTIVE.init(jax.random.key(0), context({**STUDENT, "f": np.ones((6, 3), np.int64)}))
