"""OKDDip: values and gradients against NumPy in float64, with and without gradients through the targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from jaxkd.objectives import peer_attention
from jaxkd.types import Context, ObjectiveVars
from tests.objective_runs import double
from tests.schemes.peers_toy import CE, gradients, numeric

RNG = np.random.default_rng(0)
T, WEIGHT = 3.0, 0.7
PEERS = ["a", "b", "c"]
LABELS = np.array([0, 1, 2, 3, 0], np.int32)
STUDENT = {f"{name}/logits": RNG.normal(0, 3, (5, 4)) for name in [*PEERS, "d"]}
STUDENT |= {f"{name}/f": RNG.normal(size=(5, 2, 2, 6)) for name in PEERS}
VARIABLES = ObjectiveVars({"parts": {name: {"kernel": RNG.normal(size=(6, 2))} for name in ("query", "key")}})


def objective(hold=False, weight=WEIGHT, own=CE):
    return peer_attention(PEERS, "d", "f", own=own, temperature=T, hidden_size=2, weight=weight, hold=hold)


def context(student=STUDENT, **batch):
    return Context(student, {}, {"label": LABELS, **batch}, jnp.int32(0))


def reference(params, student, held=None):
    """The published loss; targets are computed from ``held``, by default from ``student``."""
    held = student if held is None else held
    h = np.stack([held[f"{name}/f"].mean(axis=(1, 2)) for name in PEERS], axis=1)
    alpha = softmax((h @ params["query"]["kernel"]) @ (h @ params["key"]["kernel"]).transpose(0, 2, 1), axis=-1)
    q = softmax(np.stack([held[f"{name}/logits"] for name in PEERS], axis=1) / T, axis=-1)
    targets = dict(zip(PEERS, (alpha @ q).transpose(1, 0, 2), strict=True)) | {"d": q.mean(axis=1)}
    total = 0.0
    for name, t in targets.items():
        z = student[f"{name}/logits"]
        total = total - log_softmax(z, axis=1)[np.arange(5), LABELS]
        total = total + WEIGHT * T**2 * np.sum(t * (np.log(t) - log_softmax(z / T, axis=1)), axis=1)
    return total.mean()


@pytest.mark.slow
@pytest.mark.parametrize("hold", [False, True])
def test_value_and_gradients_equal_numpy_reference(hold):
    with jax.enable_x64(True):
        value, (by_params, by_student) = gradients(objective(hold), double(VARIABLES), context(double(STUDENT)))
    params = VARIABLES.params["parts"]
    assert float(value) == pytest.approx(reference(params, STUDENT), rel=1e-10)
    held = STUDENT if hold else None
    for name in STUDENT:
        slope = numeric(lambda x, name=name: reference(params, {**STUDENT, name: x}, held), STUDENT[name])
        np.testing.assert_allclose(by_student[name], slope, atol=1e-7)
        assert (np.abs(slope).max() > 1e-4) == (not hold or name.endswith("logits"))
    for name in ("query", "key"):  # these learn with `hold` as well
        slope = numeric(
            lambda x, name=name: reference({**params, name: {"kernel": x}}, STUDENT), params[name]["kernel"]
        )
        np.testing.assert_allclose(by_params["parts"][name]["kernel"], slope, atol=1e-7)
        assert np.abs(slope).max() > 1e-3


@pytest.mark.slow
def test_held_targets_receive_no_gradient_from_leader():
    silent = objective(hold=True)

    def taught(student):
        out = silent.apply(VARIABLES.params, {}, context(student), None)
        return out.terms["taught/d"]

    slope = jax.grad(taught)(jax.tree.map(jnp.float32, STUDENT))
    assert (slope["d/logits"] != 0).any()
    assert not any((x != 0).any() for name, x in slope.items() if name != "d/logits")


def test_single_peer_is_its_own_target():
    alone = peer_attention(["a"], "d", "f", own=CE, temperature=T)
    made = alone.init(jax.random.key(0), context())
    out = alone.apply(made.params, made.state, context(), None)
    assert float(out.metrics["taught/a"].sum) == pytest.approx(0, abs=1e-5)
    assert float(out.metrics["taught/d"].sum) > 0.1


@pytest.mark.slow
def test_masking_equals_dropping():
    keep = np.array([True, False, True, True, False])
    dropped = {name: x[keep].astype(np.float32) for name, x in STUDENT.items()}
    expected = objective().apply(VARIABLES.params, {}, context(dropped, label=LABELS[keep]), None)
    for garbage in (np.nan, 1e30):
        spoiled = {name: x.astype(np.float32) for name, x in STUDENT.items()}
        for x in spoiled.values():
            x[~keep] = garbage
        value, slopes = gradients(objective(), VARIABLES, context(spoiled, mask=keep))
        np.testing.assert_allclose(value, expected.value, rtol=1e-5)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
        assert all((x[~keep] == 0).all() for x in slopes[1].values())


@pytest.mark.slow
def test_extreme_inputs_are_finite():
    extreme = {name: np.float32(1e4) * np.sign(x).astype(np.float32) for name, x in STUDENT.items()}
    other = np.arange(4) == (LABELS[:, None] + 1) % 4
    excluded = {n: np.where(other, -np.inf, x) if n.endswith("logits") else x for n, x in STUDENT.items()}
    for student in (extreme, jax.tree.map(np.float32, excluded), jax.tree.map(np.zeros_like, STUDENT)):
        found = gradients(objective(), VARIABLES, context(student))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
    assert float(gradients(objective(), VARIABLES, context(extreme, mask=np.zeros(5, bool)))[0]) == 0


def test_invalid_arguments_and_outputs_raise():
    with pytest.raises(ValueError, match="got none"):
        peer_attention([], "d", "f", own=CE)
    with pytest.raises(ValueError, match="each name once"):
        peer_attention(["a", "d"], "d", "f", own=CE)
    with pytest.raises(ValueError, match="temperature: expected a positive number, got 0"):
        peer_attention(PEERS, "d", "f", own=CE, temperature=0)
    with pytest.raises(ValueError, match="hidden_size: expected a positive number, an integer, got 0"):
        peer_attention(PEERS, "d", "f", own=CE, hidden_size=0)
    with pytest.raises(ValueError, match=r"'f': expected floating-point features.*of one size.*\[5, 7\]"):
        objective().init(jax.random.key(0), context({**STUDENT, "b/f": np.ones((5, 7))}))
    with pytest.raises(ValueError, match="logits of one shape"):
        objective().init(jax.random.key(0), context({**STUDENT, "d/logits": np.ones((5, 7))}))
    with pytest.raises(ValueError, match="'a/g'"):
        peer_attention(PEERS, "d", "g", own=CE).init(jax.random.key(0), context())
