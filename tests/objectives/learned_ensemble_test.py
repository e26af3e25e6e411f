"""Learned ensemble weights: values, gradient routing, masks, devices, and a single teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import losses
from jaxkd.objectives import learned_ensemble
from tests import objective_runs, references, tiny
from tests.objective_runs import initialize, run

BATCH, CLASSES = 8, 4
PATHS = ("teacher/a/logits", "teacher/b/logits", "teacher/c/logits")
KEEP = np.arange(BATCH) % 3 > 0
T, WEIGHT = 3.0, 0.7
OBJECTIVE = learned_ensemble(teachers=PATHS, temperature=T, weight=WEIGHT)


def arrays(shape=(BATCH, CLASSES), mask=None):
    rng = np.random.default_rng(0)
    z = {name: 3 * rng.normal(size=shape).astype(np.float32) for name in ("s", "a/logits", "b/logits", "c/logits")}
    label = rng.integers(0, CLASSES, shape[:-1]).astype(np.int32)
    batch = {"label": label} | ({} if mask is None else {"mask": mask})
    return {"student": {"logits": z.pop("s")}, "teacher": z, "batch": batch}


def learned(given, weights=(0.4, -0.3, 0.9)):
    variables = initialize(OBJECTIVE, given)
    np.testing.assert_array_equal(variables.params["weights"], np.zeros(3))
    return variables._replace(params={"weights": jnp.asarray(weights, jnp.float32)})


def softmax(z):
    return np.exp(references.log_softmax(z))


def formula(weights, given):
    """T² KL, and the ensemble's cross-entropy and probabilities, in float64."""
    w = softmax(np.asarray(weights, np.float64))
    z = np.stack([given["teacher"][path.removeprefix("teacher/")] for path in PATHS])
    target, log_s = np.einsum("k,k...->...", w, softmax(z / T)), references.log_softmax(given["student"]["logits"] / T)
    kl = T**2 * (target * (np.log(target) - log_s)).sum(-1)
    mixture = np.einsum("k,k...->...", w, softmax(z))
    return kl, -np.log(np.take_along_axis(mixture, given["batch"]["label"][..., None], -1)[..., 0]), target


@pytest.mark.parametrize("shape", [(BATCH, CLASSES), (3, 2, CLASSES)], ids=["classes", "tokens"])
def test_value_and_gradients_equal_numpy_reference(shape):
    given = arrays(shape)
    variables = learned(given)
    weights = np.asarray(variables.params["weights"], np.float64)
    kl, nll, target = formula(weights, given)
    found = run(OBJECTIVE, variables, given)
    np.testing.assert_allclose(found.value, WEIGHT * kl.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.metrics[""], kl.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.metrics["nll"], nll.mean(), rtol=1e-5)
    for name, share in zip("abc", softmax(weights), strict=True):
        np.testing.assert_allclose(found.metrics[f"share/{name}"], share, rtol=1e-6)
    # The weights receive the gradient of the cross-entropy, independent of the student; the student that of the KL.
    slope = references.finite_difference(lambda a: formula(a, given)[1].mean(), weights)
    np.testing.assert_allclose(found.params["weights"], slope, rtol=1e-4, atol=1e-6)
    expected = WEIGHT * T * (softmax(given["student"]["logits"] / T) - target) / kl.size
    np.testing.assert_allclose(found.student["logits"], expected, rtol=1e-4, atol=1e-7)


def test_single_teacher_equals_soft_target_kl():
    given = arrays()
    alone = learned_ensemble(teachers=PATHS[:1], temperature=T, weight=WEIGHT)
    term = jaxkd.term(losses.soft_target_kl, "student/logits", PATHS[0], weight=WEIGHT, temperature=T)
    found = run(alone, initialize(alone, given), given)
    expected = run(term, initialize(term, given), given)
    assert found.value == expected.value and found.metrics[""] == expected.metrics[""]
    np.testing.assert_array_equal(found.student["logits"], expected.student["logits"])
    np.testing.assert_array_equal(found.params["weights"], [0])
    assert found.metrics["share/a"] == 1


def test_equal_weights_equal_averaged_ensemble():
    given = arrays()
    z = np.stack([given["teacher"][path.removeprefix("teacher/")] for path in PATHS])
    average = jaxkd.teachers.average_probabilities(T)(z, np.full(3, 1 / 3, np.float32))
    found = run(OBJECTIVE, initialize(OBJECTIVE, given), given)
    expected = losses.soft_target_kl(given["student"]["logits"], average, temperature=T).mean()
    np.testing.assert_allclose(found.metrics[""], expected, rtol=1e-5)


def test_masking_equals_dropping():
    given = arrays(mask=KEEP)
    holed = jax.tree.map(lambda x: np.where(KEEP[:, None], x, np.nan), {k: given[k] for k in ("student", "teacher")})
    dropped = jax.tree.map(lambda x: x[KEEP], arrays())
    found = run(OBJECTIVE, learned(given), {**given, **holed})
    expected = run(OBJECTIVE, learned(dropped), dropped)
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-5)
    tiny.assert_close(found.params, expected.params, rtol=1e-4)
    np.testing.assert_allclose(found.student["logits"][KEEP], expected.student["logits"], rtol=1e-4, atol=1e-7)
    assert (found.student["logits"][~KEEP] == 0).all()
    tiny.assert_close(found.metrics, expected.metrics)


def test_extreme_inputs_are_finite():
    given = arrays()
    huge = {**given, "teacher": {k: 1e4 * x for k, x in given["teacher"].items()}, "student": given["student"]}
    none = {**arrays(mask=np.zeros(BATCH, bool))}
    # One class is excluded by all teachers, another by a single teacher.
    out = {name: x.copy() for name, x in given["teacher"].items()}
    for x in out.values():
        x[:, given["batch"]["label"][0]] = -np.inf
    out["a/logits"][1, (given["batch"]["label"][1])] = -np.inf
    excluded = {**given, "teacher": out}
    for case in (huge, none, excluded):
        for weights in ((0.0, 0.0, 0.0), (1e4, -1e4, 0.0)):
            found = run(OBJECTIVE, learned(case, weights), case)
            assert np.isfinite(found.value)
            assert np.isfinite(found.params["weights"]).all() and np.isfinite(found.student["logits"]).all()
    assert (run(OBJECTIVE, learned(none), none).params["weights"] == 0).all()


@pytest.mark.parametrize(("way", "count"), objective_runs.PLACES)
def test_result_is_independent_of_device_count(way, count):
    given = arrays(mask=KEEP)
    expected = run(OBJECTIVE, learned(given), given)
    found = objective_runs.on_devices(OBJECTIVE, way, count)(learned(given), given)
    tiny.assert_close(found._replace(metrics=dict(found.metrics)), expected, rtol=1e-4, atol=1e-6)


def test_better_teacher_gains_weight():
    """The weights learn in a distillation even if the weight of the student's loss is 0."""
    models = {"good": 4.0, "bad": 0.0}

    def member(scale):
        model = jaxkd.adapters.plain(
            lambda key, label: jnp.float32(scale),
            lambda scale, label: scale * jax.nn.one_hot(label, tiny.CLASSES),
            inputs="label",
        )
        return jaxkd.teachers.frozen(model, jaxkd.Variables(jnp.float32(scale)))

    teacher = jaxkd.teachers.ensemble({name: member(scale) for name, scale in models.items()})
    objective = learned_ensemble(teachers=[f"teacher/{name}/logits" for name in models], weight=0.0)
    kd = jaxkd.distill(tiny.student, teacher, jaxkd.combine(kd=objective), optimizer=optax.sgd(1.0))
    state, step = kd.init(jax.random.key(0), tiny.batch(8)), jax.jit(kd.step)
    start, found = state.student, []
    for i in range(10):
        state, metrics = step(state, tiny.batch(8, i))
        found.append(tiny.numbers(metrics))
    shares = [one["kd/share/good"] for one in found]
    assert shares == sorted(shares) and shares[0] == 0.5 and shares[-1] > 0.8
    assert found[-1]["kd/nll"] < found[0]["kd/nll"]
    tiny.assert_equal(state.student, start)


def test_temperature_accepts_a_schedule():
    given = arrays()
    scheduled = learned_ensemble(teachers=PATHS, temperature=lambda step: T + 0.0 * step, weight=WEIGHT)
    found, expected = (run(o, learned(given), given).value for o in (scheduled, OBJECTIVE))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_invalid_teachers_and_inputs_raise():
    for teachers in ((), (PATHS[0], PATHS[0])):
        with pytest.raises(ValueError, match="expected the paths of different teachers' logits, got"):
            learned_ensemble(teachers=teachers)
    given = arrays()
    for change, message in (
        (
            {"teacher": {**given["teacher"], "b/logits": np.zeros((BATCH, 5), np.float32)}},
            "logits of one shape.*expand_classes",
        ),
        ({"student": {"logits": np.zeros((BATCH, 5), np.float32)}}, "student|teacher"),
        ({"batch": {"label": np.zeros((BATCH, CLASSES), np.float32)}}, "labels"),
        ({"teacher": {"a/logits": given["teacher"]["a/logits"]}}, r"'teacher/b/logits', teacher entry"),
    ):
        with pytest.raises(ValueError, match=message):
            initialize(OBJECTIVE, {**given, **change})
