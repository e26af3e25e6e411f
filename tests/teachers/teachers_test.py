"""Frozen teachers never change, cached teachers decode the batch, and none is supervised training."""

import types

import flax.errors
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


def test_frozen_equals_its_model_in_inference_mode():
    teacher = jaxkd.teachers.frozen(MODEL, WEIGHTS)
    out = teacher.apply(teacher.init(None, BATCH, None), BATCH, key=jax.random.key(0))
    np.testing.assert_array_equal(out["logits"], Net().apply(WEIGHTS, BATCH["image"]))


def test_training_mode_applies_dropout_in_steps_but_not_in_evaluations():
    teacher = jaxkd.teachers.frozen(MODEL, WEIGHTS, train=True)
    state = teacher.init(None, BATCH, None)
    first, second = (teacher.apply(state, BATCH, key=jax.random.key(i))["logits"] for i in range(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(teacher.apply(state, BATCH, key=None)["logits"], Net().apply(WEIGHTS, BATCH["image"]))


def test_weights_are_copied_and_survive_donation():
    teacher = jaxkd.teachers.frozen(MODEL, WEIGHTS)
    kd = jaxkd.distill(MODEL, teacher, CE, optimizer=optax.sgd(0.1))
    step = jax.jit(kd.step, donate_argnums=0)
    state = kd.init(jax.random.key(0), BATCH)
    for _ in range(3):
        state, _ = step(state, BATCH)
    jax.tree.map(np.testing.assert_array_equal, state.teacher, jaxkd.adapters.variables(WEIGHTS))


def test_distill_with_none_is_supervised_training():
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


def test_cached_returns_the_outputs_that_its_cache_decodes():
    cache = types.SimpleNamespace(decode=lambda batch: {"logits": 2 * batch["cached/logits/values"]})
    teacher, batch = jaxkd.teachers.cached(cache), BATCH | {"cached/logits/values": np.ones((6, 3), np.float32)}
    state = teacher.init(None, batch, None)
    assert state == teacher.update(state, None, 1) == {}
    np.testing.assert_array_equal(teacher.apply(state, batch, key=None)["logits"], np.full((6, 3), 2))


def test_an_objective_that_reads_the_teacher_is_an_error_with_none():
    objective = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits")
    kd = jaxkd.distill(MODEL, jaxkd.teachers.none(), objective, optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"path 'teacher/logits'.*Available: nothing.*taps of the teacher's adapter"):
        kd.init(jax.random.key(0), jax.tree.map(jnp.asarray, BATCH))


def test_dtype_narrows_the_parameters_of_the_teacher_only():
    """Parameters take half the memory; statistics and student keep their dtype, outputs change by rounding."""
    wide, narrow = jaxkd.teachers.frozen(MODEL, WEIGHTS), jaxkd.teachers.frozen(MODEL, WEIGHTS, dtype=jnp.bfloat16)
    kd = jaxkd.distill(MODEL, narrow, CE, optimizer=optax.sgd(0.1))
    state = kd.init(jax.random.key(0), BATCH)
    for _ in range(2):
        state, _ = jax.jit(kd.step)(state, BATCH)
    assert {x.dtype.name for x in jax.tree.leaves(state.teacher.params)} == {"bfloat16"}
    assert {x.dtype.name for x in jax.tree.leaves((state.teacher.state, state.student))} == {"float32"}
    size = [sum(x.nbytes for x in jax.tree.leaves(one.init(None, BATCH, None).params)) for one in (wide, narrow)]
    assert size[0] == 2 * size[1]
    full, half = (one.apply(one.init(None, BATCH, None), BATCH, key=None)["logits"] for one in (wide, narrow))
    np.testing.assert_allclose(half, full, rtol=0.02, atol=0.02)
    assert not np.array_equal(half, full)


def test_dtype_leaves_integers_and_keys_unchanged():
    key = jax.random.key(0)
    teacher = jaxkd.teachers.frozen(MODEL, jaxkd.Variables({"w": np.ones(2), "table": np.arange(2)}, {"key": key}))
    narrow = jaxkd.teachers.frozen(
        MODEL, jaxkd.Variables({"w": np.ones(2), "table": np.arange(2)}, {"key": key}), dtype="float16"
    )
    for one, dtype in ((teacher, "float32"), (narrow, "float16")):
        state = one.init(None, BATCH, None)
        assert [state.params["w"].dtype.name, state.params["table"].dtype.name] == [dtype, "int32"]
        assert state.state["key"] == key
    with pytest.raises(ValueError, match=r"frozen, dtype: expected a floating-point dtype.*int8"):
        jaxkd.teachers.frozen(MODEL, WEIGHTS, dtype=jnp.int8)


def test_weights_of_another_model_are_an_error_that_names_the_teacher():
    other = jax.tree.map(lambda x: np.concatenate([x, x], axis=-1), WEIGHTS)
    kd = jaxkd.distill(MODEL, jaxkd.teachers.frozen(MODEL, other), CE, optimizer=optax.sgd(0.1))
    with pytest.raises(flax.errors.ScopeParamShapeError) as error:
        kd.init(jax.random.key(0), BATCH)
    assert "in the teacher, with its own weights" in error.value.__notes__
