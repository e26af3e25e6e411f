"""The mean teacher equals the student's exponential average, on one device and on several."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, distillers, losses, teachers, term
from jaxkd._core import moving_average
from tests import tiny

OBJECTIVE = combine(
    ce=term(losses.cross_entropy, "student/logits", "batch/label"),
    consistency=term(losses.logit_mse, "student/logits", "teacher/logits"),
)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(5)(x.reshape(x.shape[0], -1)))
        return nn.Dense(tiny.CLASSES)(nn.Dropout(0.5, deterministic=not train)(x))


NET = jaxkd.adapters.linen(Net())


def distiller(model, rate=0.1, **settings):
    return jaxkd.distill(model, teachers.ema(model, **settings), OBJECTIVE, optimizer=optax.sgd(rate))


def train(kd, steps=4, state=None):
    step = jax.jit(kd.step, donate_argnums=0)
    state = kd.init(jax.random.key(0), tiny.batch(8)) if state is None else state
    seen = [jax.tree.map(lambda x: np.asarray(x, np.float64), state.student)]
    for seed in range(steps):
        state, _ = step(state, tiny.batch(8, seed))
        seen.append(jax.tree.map(lambda x: np.asarray(x, np.float64), state.student))
    return state, seen


@pytest.mark.parametrize("decay", [0.9, moving_average.ema_warmup(0.3)], ids=["number", "schedule"])
def test_ema_equals_the_float64_reference(decay):
    state, (average, *students) = train(distiller(NET, decay=decay))
    for step, student in enumerate(students):
        share = min(0.3, (1 + step) / (10 + step)) if callable(decay) else decay
        average = jax.tree.map(lambda a, s, share=share: share * a + (1 - share) * s, average, student)
    assert {"mean", "var"} <= set(average.state["batch_stats"]["BatchNorm_0"])
    tiny.assert_close(state.teacher, average, rtol=1e-5, atol=1e-6)


def test_decay_1_keeps_the_initial_student_and_decay_0_gives_the_last():
    state, (first, *_) = train(distiller(NET, decay=1.0))
    jax.tree.map(np.testing.assert_array_equal, state.teacher, first)
    state, _ = train(distiller(NET, decay=0.0))
    tiny.assert_equal(state.teacher, state.student)


def test_outputs_are_those_of_the_average_before_the_step():
    """The consistency term compares the student with the average before the step."""
    kd = distiller(tiny.student, rate=2.0, decay=0.9)
    state, _ = train(kd)
    out, _ = tiny.student.apply(state.teacher, tiny.batch(8, 9), key=None, train=False)
    student, _ = tiny.student.apply(state.student, tiny.batch(8, 9), key=None, train=True)
    expected = jnp.mean(losses.logit_mse(student["logits"], out["logits"]))
    _, metrics = jax.jit(kd.step)(state, tiny.batch(8, 9))
    assert tiny.numbers(metrics)["consistency"] == pytest.approx(float(expected), rel=1e-5)
    assert expected > 1e-4


def test_ema_equals_training_averaged_bit_for_bit():
    kd = distillers.with_ema(distiller(NET, decay=moving_average.ema_warmup()), decay=moving_average.ema_warmup())
    state, _ = train(kd)
    tiny.assert_equal(state.teacher, distillers.ema_params(state))


def test_ema_of_a_bfloat16_student_is_stored_in_float32():
    """In bfloat16, updates of 0.001 of the difference would round to zero."""
    teacher = teachers.ema(tiny.student, decay=0.999)
    state = teacher.init(None, {}, jaxkd.Variables({"w": jnp.ones(2, jnp.bfloat16)}))
    for step in range(1, 101):
        state = teacher.update(state, jaxkd.Variables({"w": jnp.full(2, 2, jnp.bfloat16)}), step)
    np.testing.assert_allclose(state.params["w"], 2 - 0.999**100, rtol=1e-5)


def test_training_mode_applies_dropout_in_steps_but_not_in_evaluations():
    state = teachers.ema(NET).init(None, {}, NET.init(jax.random.key(0), tiny.batch(8)))
    with_dropout, inference = teachers.ema(NET, train=True), teachers.ema(NET)
    first, second = (with_dropout.apply(state, tiny.batch(8), key=jax.random.key(i))["logits"] for i in range(2))
    assert not np.array_equal(first, second)
    evaluated = with_dropout.apply(state, tiny.batch(8), key=None)["logits"]
    np.testing.assert_array_equal(evaluated, inference.apply(state, tiny.batch(8), key=jax.random.key(0))["logits"])


@pytest.mark.parametrize("place", ["pmap", "shard"])
def test_ema_does_not_depend_on_the_devices(place):
    kd = distiller(tiny.student, decay=0.5)
    start = kd.init(jax.random.key(0), tiny.batch(8))
    expected, _ = train(kd, 2, jax.tree.map(jnp.copy, start))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
    placed = jaxkd.parallel.pmap(kd, jax.devices()[:4]) if place == "pmap" else jaxkd.parallel.shard(kd, mesh)
    state = start
    for seed in range(2):
        state, _ = placed.step(state, tiny.batch(8, seed))
    tiny.assert_close(state.teacher, expected.teacher, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("decay", [-0.1, 1.5, float("nan")])
def test_a_decay_outside_0_to_1_is_an_error(decay):
    with pytest.raises(ValueError, match=r"ema, decay: expected a number in \[0, 1\]"):
        teachers.ema(tiny.student, decay=decay)
    with pytest.raises(ValueError, match=r"with_ema, decay: expected a number in \[0, 1\]"):
        distillers.with_ema(distiller(tiny.student), decay=decay)
    with pytest.raises(ValueError, match=r"ema_warmup, decay"):
        moving_average.ema_warmup(decay)
