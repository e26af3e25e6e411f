"""Factor transfer: values of both objectives, and the trained paraphraser in the second stage."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, losses, term
from jaxkd.objectives import factor_translator, paraphraser
from tests import tiny
from tests.objectives import plain

LAYERS = ("first", "second", "third")
GIVEN = plain.context({"f": (3, 4, 4, 3)}, {"f": (3, 2, 2, 6)})


def layers(params, x):
    for name in LAYERS:
        x = plain.relu(plain.conv(plain.f64(params)[name], x), 0.1)
    return x


def test_paraphraser_value_equals_numpy_reference():
    objective = paraphraser("teacher/f", rate=0.5, weight=2.0)
    params = plain.made(objective, GIVEN).params
    shapes = {side: [params[side][name]["kernel"].shape[2:] for name in LAYERS] for side in params}
    assert shapes == {"encoder": [(6, 6), (6, 3), (3, 3)], "decoder": [(3, 3), (3, 6), (6, 6)]}
    target = np.float64(GIVEN.teacher["f"])
    want = np.mean((layers(params["decoder"], layers(params["encoder"], target)) - target) ** 2)
    np.testing.assert_allclose(objective.apply(params, {}, GIVEN, None).value, 2 * want, rtol=1e-5)


def test_factor_transfer_value_equals_numpy_reference():
    objective = factor_translator("student/f", "teacher/f", weight=2.0)
    params, state = plain.made(objective, GIVEN)
    assert [params["translator"][name]["kernel"].shape[2:] for name in LAYERS] == [(3, 3), (3, 3), (3, 3)]
    student = plain.pool(layers(params["translator"], np.float64(GIVEN.student["f"])), 2, 2)
    teacher = layers(state["paraphraser"]["encoder"], np.float64(GIVEN.teacher["f"]))

    def attention(x):
        energy = (x**2).mean(-1).reshape(len(x), -1)
        return energy / np.linalg.norm(energy, axis=1, keepdims=True)

    want = np.abs(attention(student) - attention(teacher)).mean()
    np.testing.assert_allclose(objective.apply(params, state, GIVEN, None).value, 2 * want, rtol=1e-5)


def test_translator_with_batch_norm_equals_numpy_reference():
    objective = factor_translator("student/f", "teacher/f", batch_norm=True)
    params, state = plain.made(objective, GIVEN)
    student, means = np.float64(GIVEN.student["f"]), {}
    for name in LAYERS:
        student = plain.conv(plain.f64(params["translator"])[name], student)
        means[name] = student.mean((0, 1, 2))
        student = plain.relu(plain.batch_norm(plain.f64(params["norms"])[name], student), 0.1)
    teacher = layers(state["paraphraser"]["encoder"], np.float64(GIVEN.teacher["f"]))

    def attention(x):
        energy = (x**2).mean(-1).reshape(len(x), -1)
        return energy / np.linalg.norm(energy, axis=1, keepdims=True)

    out = objective.apply(params, state, GIVEN, jax.random.key(0))
    want = np.abs(attention(plain.pool(student, 2, 2)) - attention(teacher)).mean()
    np.testing.assert_allclose(out.value, want, rtol=1e-4)
    for name in LAYERS:
        mean = 0.9 * state["norms"][name]["mean"] + 0.1 * means[name]
        np.testing.assert_allclose(out.state["norms"][name]["mean"], mean, rtol=1e-4, atol=1e-6)
    tiny.assert_equal(objective.apply(params, state, GIVEN, None).state, state)


def distiller(objective, optimizer):
    ce = term(losses.cross_entropy, "student/logits", "batch/label")
    return jaxkd.distill(tiny.student, tiny.teacher(), combine(ce=ce, factor=objective), optimizer=optimizer)


@pytest.mark.slow
def test_second_stage_keeps_the_trained_paraphraser():
    first = distiller(paraphraser("teacher/map"), optax.adam(0.02))
    state, step, values = first.init(jax.random.key(0), tiny.batch(8)), jax.jit(first.step), []
    for _ in range(20):
        state, metrics = step(state, tiny.batch(8))
        values.append(float(metrics["factor"].sum))
    assert values[-1] < 0.8 * values[0]

    learned = state.objective.params["factor"]
    # Weight decay would shrink the paraphraser if it were a parameter, even without a gradient.
    objective = factor_translator("student/map", "teacher/map", trained=learned)
    second = distiller(objective, optax.adamw(0.1, weight_decay=1.0))
    before = second.init(jax.random.key(1), tiny.batch(8))
    tiny.assert_equal(before.objective.state["factor"]["paraphraser"], learned)
    after, _ = jax.jit(second.step)(before, tiny.batch(8))
    tiny.assert_equal(after.objective.state["factor"]["paraphraser"], learned)
    assert after.objective.params["factor"].keys() == {"translator"}
    jax.jit(second.step, donate_argnums=0)(second.init(jax.random.key(1), tiny.batch(8)), tiny.batch(8))
    assert not any(x.is_deleted() for x in jax.tree.leaves(learned))
    placed = jaxkd.parallel.pmap(second, jax.devices()[:4])
    after, _ = placed(jax.tree.map(jnp.copy, before), tiny.batch(8))
    tiny.assert_equal(after.objective.state["factor"]["paraphraser"], learned)


def test_trained_parameters_of_another_rate_raise():
    learned = paraphraser("teacher/f", rate=0.3).init(jax.random.key(0), GIVEN).params
    objective = factor_translator("student/f", "teacher/f", trained=learned)
    with pytest.raises(ValueError, match=r"factor_translator: expected trained= as the parameters of paraphraser\("):
        objective.init(jax.random.key(0), GIVEN)
    factor_translator("student/f", "teacher/f", rate=0.3, trained=learned).init(jax.random.key(0), GIVEN)


@pytest.mark.parametrize(
    "make", [lambda: paraphraser("teacher/f"), lambda: factor_translator("student/f", "teacher/f")]
)
def test_features_other_than_maps_raise(make):
    vectors = plain.context({"f": (3, 4)}, {"f": (3, 5)})
    with pytest.raises(ValueError, match=r"expected a map \[batch, height, width, channels\], got float32\[3"):
        make().init(jax.random.key(0), vectors)


def test_nonpositive_rate_raises():
    for make in (
        lambda: paraphraser("teacher/f", rate=0),
        lambda: factor_translator("student/f", "teacher/f", rate=-1),
    ):
        with pytest.raises(ValueError, match="rate: expected a positive"):
            make()
