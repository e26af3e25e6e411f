"""Frozen teachers stay as they are, and no teacher at all is plain training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import losses

BATCH = {"image": np.linspace(-1, 1, 24, dtype=np.float32).reshape(6, 4), "label": np.arange(6) % 3}
CE = jaxkd.combine(ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label"))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


MODEL = jaxkd.adapters.linen(Net())
WEIGHTS = Net().init(jax.random.key(3), BATCH["image"])


def test_a_frozen_teacher_is_its_model_in_inference_mode():
    teacher = jaxkd.teachers.frozen(MODEL, WEIGHTS)
    out = teacher.apply(teacher.init(None, BATCH, None), BATCH, key=jax.random.key(0))
    np.testing.assert_array_equal(out["logits"], Net().apply(WEIGHTS, BATCH["image"]))


def test_a_teacher_in_training_mode_has_dropout_in_steps_and_none_in_evaluations():
    teacher = jaxkd.teachers.frozen(MODEL, WEIGHTS, train=True)
    state = teacher.init(None, BATCH, None)
    first, second = (teacher.apply(state, BATCH, key=jax.random.key(i))["logits"] for i in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(teacher.apply(state, BATCH, key=None)["logits"], Net().apply(WEIGHTS, BATCH["image"]))


def test_its_weights_are_a_copy_that_outlives_donation():
    teacher = jaxkd.teachers.frozen(MODEL, WEIGHTS)
    kd = jaxkd.distill(MODEL, teacher, CE, optimizer=optax.sgd(0.1))
    step = jax.jit(kd.step, donate_argnums=0)
    state = kd.init(jax.random.key(0), BATCH)
    for _ in range(3):
        state, _ = step(state, BATCH)
    jax.tree.map(np.testing.assert_array_equal, state.teacher, jaxkd.adapters.variables(WEIGHTS))


def test_without_a_teacher_distill_is_supervised_training():
    optimizer = optax.sgd(0.1, momentum=0.9)
    model = jaxkd.adapters.plain(lambda key, x: jax.random.normal(key, (4, 3)), lambda w, x: x @ w)
    kd = jaxkd.distill(model, jaxkd.teachers.none(), CE, optimizer=optimizer)
    state = kd.init(jax.random.key(0), BATCH)
    params, opt_state = state.student.params, optimizer.init(state.student.params)
    for _ in range(3):
        state, _ = kd.step(state, BATCH)

        def loss(w):
            return optax.softmax_cross_entropy_with_integer_labels(BATCH["image"] @ w, BATCH["label"]).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(state.student.params, params, rtol=1e-5, atol=1e-6)
    assert not jax.tree.leaves(state.teacher)


def test_an_objective_that_reads_the_teacher_is_refused_without_one():
    objective = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits")
    kd = jaxkd.distill(MODEL, jaxkd.teachers.none(), objective, optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"path 'teacher/logits'.*Available: nothing.*taps of the teacher's adapter"):
        kd.init(jax.random.key(0), jax.tree.map(jnp.asarray, BATCH))
