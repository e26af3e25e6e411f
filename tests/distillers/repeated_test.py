"""`distillers.repeated`: several updates, each as if it were a step of its own with the same step number."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import losses, term
from jaxkd.distillers import repeated
from tests import tiny


def distiller(weight=1.0, rate=0.1):
    loss = jaxkd.combine(kd=term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=weight))
    return jaxkd.distill(tiny.student, tiny.teacher(), loss, optimizer=optax.sgd(rate))


def test_updates_are_those_of_as_many_steps():
    kd, batch = distiller(), tiny.batch(8)
    state = kd.init(jax.random.key(0), batch)
    found, metrics = jax.jit(repeated(kd, times=3).step)(state, batch)
    expected, losses_of = state, []
    for _ in range(3):
        expected, one = jax.jit(kd.step)(expected, batch)
        losses_of.append(float(one["loss"].sum / one["loss"].count))
    tiny.assert_close(found.student, expected.student, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"].sum / metrics["loss"].count, np.mean(losses_of), rtol=1e-5)
    assert int(found.step) == 1 and losses_of[0] > losses_of[-1]
    assert (jax.random.key_data(found.key) == jax.random.key_data(state.key)).all()


def test_schedules_of_the_objective_count_batches_and_those_of_the_optimizer_updates():
    rate = optax.linear_schedule(0.0, 1.0, 10)  # the first update has the rate 0
    kd = repeated(distiller(weight=lambda step: 1.0 + step, rate=rate), times=2)
    state = kd.init(jax.random.key(0), batch := tiny.batch(8))
    weights = []
    for _ in range(2):
        state, metrics = kd.step(state, batch)
        weights.append(float(metrics["kd/weight"].sum / metrics["kd/weight"].count))
    assert weights == [1.0, 2.0]
    counts = [int(x) for x in jax.tree.leaves(state.opt_state["student"]) if jnp.issubdtype(x.dtype, jnp.integer)]
    assert counts == [4]


def test_every_update_has_its_own_keys():
    def noisy(student, teacher, where=None):
        return losses.soft_target_kl(student, teacher)

    model = jaxkd.Model(
        tiny.student.init,
        lambda variables, batch, *, key, train: tiny.student.apply(
            variables,
            {**batch, "image": batch["image"] + jax.random.normal(key, batch["image"].shape)},
            key=key,
            train=train,
        ),
    )
    kd = jaxkd.distill(model, tiny.teacher(), term(noisy, "student/logits", "teacher/logits"), optimizer=optax.sgd(0.0))
    state = kd.init(jax.random.key(0), batch := tiny.batch(8))
    _, once = kd.step(state, batch)
    _, twice = repeated(kd, times=2).step(state, batch)
    assert float(twice["loss"].sum / twice["loss"].count) != pytest.approx(
        float(once["loss"].sum / once["loss"].count), rel=1e-4
    )


def test_a_number_below_one_is_refused():
    with pytest.raises(ValueError, match="positive number of updates"):
        repeated(distiller(), times=0)
