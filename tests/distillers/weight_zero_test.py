"""Terms of weight 0 change nothing: the student is the one that trains without them, and a schedule may begin at 0."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest

import jaxkd
from jaxkd import adapters, combine, losses, objectives, teachers, term
from tests import tiny


class Net(nn.Module):
    """With dropout and BatchNorm, whose draws and statistics the other terms must not change."""

    @nn.compact
    def __call__(self, image, train=False):
        x = nn.Dense(4, name="hidden")(image.mean((1, 2)))
        x = nn.Dropout(0.3, deterministic=not train)(jnp.tanh(x))
        return nn.Dense(tiny.CLASSES)(nn.BatchNorm(use_running_average=not train)(x))


STUDENT = adapters.linen(Net(), taps={"vector": "hidden"})
BATCH = tiny.batch(6)
CE = term(losses.cross_entropy, "student/logits", "batch/label")


def distiller(weight):
    return jaxkd.distill(
        STUDENT,
        tiny.teacher(),
        combine(
            ce=CE,
            kd=term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=weight),
            hint=objectives.hint("student/vector", "teacher/vector", weight=weight),
        ),
        optimizer=optax.sgd(0.1, momentum=0.9),
    )


def trained(kd, step):
    state = kd.init(jax.random.key(0), BATCH)
    for _ in range(3):
        state, _ = step(state, BATCH)
    return state


ALONE = jaxkd.distill(STUDENT, teachers.none(), combine(ce=CE), optimizer=optax.sgd(0.1, momentum=0.9))


@pytest.mark.slow
def test_weight_zero_is_training_without_the_term():
    """Up to rounding, since another program is fused in another way."""
    kd = distiller(0.0)
    tiny.assert_close(trained(kd, jax.jit(kd.step)).student, trained(ALONE, jax.jit(ALONE.step)).student, rtol=1e-5)


@pytest.mark.slow
def test_weight_zero_is_exact_without_fusion():
    tiny.assert_equal(trained(distiller(0.0), distiller(0.0).step).student, trained(ALONE, ALONE.step).student)


def test_a_schedule_may_begin_at_zero():
    """In the first step nothing of the terms is learned, and in the second one everything is."""
    kd = distiller(lambda step: jnp.where(step == 0, 0.0, 1.0))
    step, start = jax.jit(kd.step), kd.init(jax.random.key(0), BATCH)
    first, _ = step(start, BATCH)
    tiny.assert_equal(first.objective.params, start.objective.params)
    second, _ = step(first, BATCH)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), second.objective.params, first.objective.params)
    assert all(jax.tree.leaves(moved))
    assert all(jnp.isfinite(x).all() for x in jax.tree.leaves((second.student, second.objective)))
