"""Learned temperatures: gradient reversal, curriculum, masks, devices and extremes."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.objectives import cosine_curriculum, curriculum_temperature, instance_temperature
from tests import objective_runs, tiny
from tests.objective_runs import context, initialize, run

BATCH, CLASSES = 8, 4
KEEP = np.arange(BATCH) % 3 > 0
LAMBDA, WEIGHT = 0.3, 2.0
OPTIONS: dict[str, Any] = {"difficulty": LAMBDA, "weight": WEIGHT, "start": 0.5, "span": 6.0}
OBJECTIVES = {"global": curriculum_temperature(**OPTIONS), "instance": instance_temperature(hidden_size=5, **OPTIONS)}


@pytest.fixture(params=OBJECTIVES)
def name(request):
    return request.param


def arrays(seed=0, mask=None, shape=(BATCH, CLASSES)):
    rng = np.random.default_rng(seed)
    student, teacher = ({"logits": 3 * rng.normal(size=shape).astype(np.float32)} for _ in range(2))
    return {"student": student, "teacher": teacher, "batch": {} if mask is None else {"mask": mask}}


def temperature(name, params, student, teacher):
    """The published temperature, with the range of `OPTIONS`."""
    if name == "global":
        raw = params["raw"]
    else:
        x = jnp.concatenate([student, teacher], axis=-1)
        first, second = params["first"], params["second"]
        raw = jax.nn.relu(x @ first["kernel"] + first["bias"][None]) @ second["kernel"] + second["bias"][None]
        raw = raw[..., 0]
    return 0.5 + 6.0 / (1 + jnp.exp(-raw))


def plain(name, given):
    """The loss without gradient reversal, as a function of the temperature's parameters and the student's logits."""
    teacher = given["teacher"]["logits"]

    def loss(params, logits):
        found = temperature(name, params, jax.lax.stop_gradient(logits), teacher)
        return WEIGHT * losses.soft_target_kl(logits, teacher, temperature=found).mean()

    return loss


def test_temperature_gradient_is_reversed_and_scaled(name):
    objective, given = OBJECTIVES[name], arrays()
    variables = initialize(objective, given)
    loss, logits = plain(name, given), given["student"]["logits"]
    value, (of_params, of_logits) = jax.jit(jax.value_and_grad(loss, (0, 1)))(variables.params, logits)
    found = run(objective, variables, given)
    np.testing.assert_allclose(found.value, value, rtol=1e-5)
    tiny.assert_close(found.params, jax.tree.map(lambda g: -LAMBDA * g, of_params), rtol=1e-4, atol=1e-6)
    assert all((g != 0).any() for g in jax.tree.leaves(found.params))
    tiny.assert_close(found.student["logits"], of_logits, rtol=1e-4, atol=1e-6)
    # The student's gradient is that of the loss at a constant temperature.
    at = temperature(name, variables.params, logits, given["teacher"]["logits"])
    alone = jax.grad(lambda z: WEIGHT * losses.soft_target_kl(z, given["teacher"]["logits"], temperature=at).mean())
    np.testing.assert_allclose(found.student["logits"], alone(logits), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.metrics["temperature"], jnp.mean(at), rtol=1e-5)
    np.testing.assert_allclose(found.metrics[""], value / WEIGHT, rtol=1e-5)


SOFTENED = {
    "reverse_kl": ({"loss": losses.reverse_kl}, lambda s, t, y, T: losses.reverse_kl(s, t, temperature=T)),
    "dist": ({"loss": losses.dist, "beta": 2.0}, lambda s, t, y, T: losses.dist(s, t, beta=2.0, temperature=T)),
    "decoupled_kd": (
        {"loss": losses.decoupled_kd, "label_path": "batch/label"},
        lambda s, t, y, T: losses.decoupled_kd(s, t, y, temperature=T),
    ),
}


@pytest.mark.parametrize("loss", SOFTENED)
def test_temperature_of_another_loss_is_learned(name, loss):
    options, plainly = SOFTENED[loss]
    make = {"global": curriculum_temperature, "instance": functools.partial(instance_temperature, hidden_size=5)}[name]
    objective, given = make(**OPTIONS, **options), arrays()
    given["batch"] = {"label": np.arange(BATCH) % CLASSES}
    variables = initialize(objective, given)
    teacher, label, logits = given["teacher"]["logits"], given["batch"]["label"], given["student"]["logits"]

    def value(params, logits):
        found = temperature(name, params, jax.lax.stop_gradient(logits), teacher)
        return WEIGHT * plainly(logits, teacher, label, found).mean()

    want, (of_params, of_logits) = jax.jit(jax.value_and_grad(value, (0, 1)))(variables.params, logits)
    found = run(objective, variables, given)
    np.testing.assert_allclose(found.value, want, rtol=1e-5)
    tiny.assert_close(found.params, jax.tree.map(lambda g: -LAMBDA * g, of_params), rtol=1e-4, atol=1e-6)
    tiny.assert_close(found.student["logits"], of_logits, rtol=1e-4, atol=1e-6)


def test_initial_global_temperature_is_the_authors():
    given = arrays()
    found = run(curriculum_temperature(), initialize(curriculum_temperature(), given), given)
    np.testing.assert_allclose(found.metrics["temperature"], 1 + 20 / (1 + math.exp(-1)), rtol=1e-6)


def test_instance_temperature_differs_between_examples():
    objective, given = OBJECTIVES["instance"], arrays()
    variables = initialize(objective, given)
    each = [
        run(objective, variables, jax.tree.map(lambda x, i=i: x[i : i + 1], given)).metrics["temperature"]
        for i in range(BATCH)
    ]
    assert len({float(t) for t in each}) > BATCH // 2
    np.testing.assert_allclose(np.mean(each), run(objective, variables, given).metrics["temperature"], rtol=1e-5)


def test_difficulty_accepts_a_schedule():
    given = arrays()
    constant = curriculum_temperature(difficulty=0.5)
    variables = initialize(constant, given)
    scheduled = curriculum_temperature(difficulty=lambda step: step / 6)  # the context is at step 3
    tiny.assert_close(run(scheduled, variables, given), run(constant, variables, given), rtol=1e-6)
    still = run(curriculum_temperature(difficulty=cosine_curriculum(10**9)), variables, given)
    np.testing.assert_allclose(still.params["raw"], 0, atol=1e-12)


@pytest.mark.parametrize(
    ("step", "value"),
    [(0, 0.2), (2, 0.2 + 0.4 * (1 - math.cos(math.pi / 5))), (5, 0.6), (10, 1.0), (11, 1.0), (10**6, 1)],
)
def test_curriculum_equals_formula(step, value):
    schedule = cosine_curriculum(10, low=0.2, high=1.0)
    np.testing.assert_allclose(schedule(step), value, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(schedule)(jnp.int32(step)), value, rtol=1e-5)


def test_curriculum_is_monotonic_and_ends_at_high():
    values = jax.vmap(cosine_curriculum(50))(jnp.arange(80))
    assert (np.diff(values) >= 0).all()
    assert values[0] == 0
    assert (values[50:] == 1).all()
    assert jnp.asarray(values).dtype == jnp.float32


@pytest.mark.parametrize("steps", [0, -3])
def test_curriculum_without_steps_raises(steps):
    with pytest.raises(ValueError, match="cosine_curriculum, steps: expected a positive number"):
        cosine_curriculum(steps)


def test_masking_equals_dropping(name):
    objective, given = OBJECTIVES[name], arrays(mask=KEEP)
    variables = initialize(objective, given)
    dropped = {root: objective_runs.rows(given[root], KEEP) for root in ("student", "teacher")}
    want = run(objective, variables, {**dropped, "batch": {}})
    for garbage in np.nan, np.inf, 1e30:
        found = run(objective, variables, {root: objective_runs.spoiled(x, KEEP, garbage) for root, x in given.items()})
        tiny.assert_close(found._replace(student={}), want._replace(student={}), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.student["logits"][KEEP], want.student["logits"], rtol=1e-4, atol=1e-6)
        assert (found.student["logits"][~KEEP] == 0).all()


@pytest.mark.parametrize(("way", "count"), [("pmap", 4), ("shard_map", 8)], ids=str)
def test_result_is_independent_of_device_count(name, way, count):
    objective = OBJECTIVES[name]
    variables = initialize(objective, arrays())
    placed = objective_runs.on_devices(objective, way, count)
    for mask in KEEP, np.arange(BATCH) >= BATCH // 2:
        given = arrays(mask=mask)
        tiny.assert_close(placed(variables, given), run(objective, variables, given), rtol=1e-4, atol=1e-5)


def test_token_logits_equal_flattened_logits(name):
    objective, given = OBJECTIVES[name], arrays(shape=(BATCH, 3, CLASSES), mask=KEEP)
    found = run(objective, initialize(objective, given), given)
    flat = {root: {"logits": given[root]["logits"][KEEP].reshape(-1, CLASSES)} for root in ("student", "teacher")}
    want = run(objective, initialize(objective, given), {**flat, "batch": {}})
    tiny.assert_close(found._replace(student={}), want._replace(student={}), rtol=1e-4, atol=1e-6)


def test_extreme_logits_are_finite(name):
    objective = OBJECTIVES[name]
    for teacher in 1e4, -np.inf:
        given = arrays()
        for side in "student", "teacher":
            given[side]["logits"][:, 0] = teacher
        found = run(objective, initialize(objective, given), given)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_mismatched_logits_raise():
    given = arrays()
    given["teacher"]["logits"] = given["teacher"]["logits"][:, :3]
    for make in curriculum_temperature, instance_temperature:
        with pytest.raises(ValueError, match="teacher"):
            make().init(jax.random.key(0), jax.eval_shape(lambda: context(given)))
        with pytest.raises(ValueError, match="student entry 'logit'"):
            make("student/logit").init(jax.random.key(0), jax.eval_shape(lambda: context(given)))
