"""Mixed precision: bfloat16 computation with float32 parameters, gradients and state."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxkd
from jaxkd import Variables, adapters, combine, losses, term, wrappers
from jaxkd._core.batch_norm import replicas
from tests import tiny
from tests.adapters import models
from tests.adapters.jaxprs import products

KEY = jax.random.key(0)
MODELS = {"linen": adapters.linen(models.Net()), "nnx": adapters.nnx(models.NnxNet)}
IMAGE = np.random.default_rng(0).normal(1, 2, size=(8, 2, 2, 2)).astype(np.float32)
BATCHES = {"whole": {"image": IMAGE}, "masked": {"image": IMAGE, "mask": np.arange(8) != 3}}
VARIABLES = {name: model.init(KEY, BATCHES["whole"]) for name, model in MODELS.items()}


def trained(model, variables, batch):
    """Returns gradients, outputs and the new state."""

    def loss(params):
        outputs, state = model.apply(variables._replace(params=params), batch, key=None, train=True)
        values = jnp.sum(jnp.sin(outputs["logits"].astype(jnp.float32)), axis=-1)
        return jnp.sum(jnp.where(batch.get("mask", True), values, 0)), (outputs, state)

    return jax.grad(loss, has_aux=True)(variables.params)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", MODELS)
def test_products_are_bfloat16_and_gradients_and_state_float32(name, batch, count):
    model, variables, batch = wrappers.precision(MODELS[name]), VARIABLES[name], BATCHES[batch]
    with replicas(count):
        jaxpr, shapes = jax.make_jaxpr(lambda v: trained(model, v, batch), return_shape=True)(variables)
    gradients, (outputs, state) = shapes
    # A convolution and a dense layer: forward, backward by weights and (except the first) backward by inputs.
    assert [kinds[:2] for kinds in products(jaxpr)] == [("bfloat16", "bfloat16")] * 5
    assert {x.dtype for x in jax.tree.leaves((gradients, state))} == {jnp.dtype("float32")}
    assert outputs["logits"].dtype == jnp.bfloat16
    chex.assert_trees_all_equal_shapes_and_dtypes((gradients, state), (variables.params, variables.state))


@pytest.mark.parametrize("name", MODELS)
def test_inference_computes_in_bfloat16_too(name):
    model, variables = wrappers.precision(MODELS[name]), VARIABLES[name]
    infer = lambda v: model.apply(v, BATCHES["whole"], key=None, train=False)  # noqa: E731
    jaxpr, (outputs, state) = jax.make_jaxpr(infer, return_shape=True)(variables)
    assert [kinds[:2] for kinds in products(jaxpr)] == [("bfloat16", "bfloat16")] * 2
    assert outputs["logits"].dtype == jnp.bfloat16
    chex.assert_trees_all_equal_shapes_and_dtypes(state, variables.state)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", MODELS)
def test_results_are_close_to_float32(name, batch):
    found, expected = (
        jax.jit(lambda v, m=model: trained(m, v, BATCHES[batch]))(VARIABLES[name])
        for model in (wrappers.precision(MODELS[name]), MODELS[name])
    )
    rounded = np.float32(found[1][0]["logits"])
    np.testing.assert_allclose(rounded, expected[1][0]["logits"], rtol=5e-2, atol=5e-2)
    assert (rounded != expected[1][0]["logits"]).any()
    chex.assert_trees_all_close(found[1][1], expected[1][1], rtol=2e-2, atol=2e-2)
    difference = jax.tree.map(lambda a, b: a - b, found[0], expected[0])
    assert optax.tree.norm(difference) < 0.1 * optax.tree.norm(expected[0])


def slow_linen():
    class Slow(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.BatchNorm(use_running_average=not train, momentum=0.9999)(x)

    return adapters.linen(Slow())


@pytest.mark.parametrize(
    "model",
    [slow_linen(), adapters.nnx(lambda rngs: nnx.BatchNorm(2, momentum=0.9999, rngs=rngs))],
    ids=["linen", "nnx"],
)
@pytest.mark.parametrize("count", [1, 2])
def test_running_statistics_keep_changes_below_bfloat16_resolution(model, count):
    model = wrappers.precision(model)
    variables = model.init(KEY, {"image": IMAGE})
    with replicas(count):
        _, state = model.apply(variables, {"image": IMAGE}, key=None, train=True)
    image = np.float64(jnp.asarray(IMAGE, jnp.bfloat16)).reshape(count, -1, 2)
    mean, var = image.mean(axis=1).mean(axis=0), image.var(axis=1).mean(axis=0)
    found = dict(zip(("mean", "var"), jax.tree.leaves(state), strict=True))
    np.testing.assert_allclose(found["mean"], 1e-4 * mean, rtol=1e-3)
    np.testing.assert_allclose(found["var"] - 1, 1e-4 * (var - 1), rtol=1e-2)
    assert (found["var"] != 1).all()


def test_only_floating_point_parameters_and_inputs_are_cast():
    seen = {}

    def apply(variables, batch, *, key, train):
        seen.update(jax.tree.map(lambda x: x.dtype.name, {"params": variables.params, "batch": batch}))
        seen["state"] = jax.tree.map(lambda x: x.dtype.name, variables.state)
        return {"logits": batch["image"]}, jax.tree.map(lambda x: x.astype(jnp.bfloat16), variables.state)

    state = {"mean": jnp.ones(2)}
    batch = {
        "image": jnp.ones((4, 2)),
        "label": jnp.zeros(4, int),
        "mask": jnp.ones(4, bool),
        "step": jnp.int32(0),
        "teacher": {"logits": jnp.ones((4, 2), jnp.float16)},
    }
    model = wrappers.precision(jaxkd.Model(lambda key, batch: Variables({}, state), apply), jnp.float16)
    _, after = model.apply(Variables({"w": jnp.ones(1), "n": jnp.ones(1, int)}, state), batch, key=KEY, train=True)
    assert seen == {
        "params": {"w": "float16", "n": "int32"},
        "state": {"mean": "float32"},
        "batch": {
            "image": "float16",
            "label": "int32",
            "mask": "bool",
            "step": "int32",
            "teacher": {"logits": "float16"},
        },
    }
    assert after["mean"].dtype == jnp.float32


def test_a_layers_own_dtype_is_kept():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2, dtype=jnp.float32)(nn.Dense(3)(x))

    model = wrappers.precision(adapters.linen(Net()))
    batch = {"image": jnp.ones((4, 2))}
    variables = model.init(KEY, batch)
    jaxpr = jax.make_jaxpr(lambda v: model.apply(v, batch, key=None, train=True)[0])(variables)
    assert [kinds[:2] for kinds in products(jaxpr)] == [("bfloat16", "bfloat16"), ("float32", "float32")]


def test_student_and_teacher_may_differ_in_precision():
    objective = combine(kd=term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=4.0))
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tiny.teacher_variables())
    teachers = {
        jnp.float32: tiny.teacher(),
        jnp.bfloat16: jaxkd.teachers.frozen(wrappers.precision(tiny.teacher_model), narrow),
    }
    students = {jnp.float32: tiny.student, jnp.bfloat16: wrappers.precision(tiny.student)}
    values = {}
    for of_student, of_teacher in (
        (jnp.float32, jnp.float32),
        (jnp.float32, jnp.bfloat16),
        (jnp.bfloat16, jnp.float32),
    ):
        optimizer = optax.sgd(0.1, momentum=0.9)
        kd = jaxkd.distill(students[of_student], teachers[of_teacher], objective, optimizer=optimizer)
        state = kd.init(KEY, tiny.batch(8))
        step = jax.jit(kd.step, donate_argnums=0)
        for seed in range(3):
            state, metrics = step(state, tiny.batch(8, seed))
        floats = lambda tree: {  # noqa: E731
            x.dtype for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)
        }
        assert floats(state.teacher) == {jnp.dtype(of_teacher)}
        assert floats((state.student, state.opt_state)) == {jnp.dtype("float32")}
        assert metrics["loss"].sum.dtype == jnp.float32
        values[of_student, of_teacher] = tiny.numbers(metrics)["loss"]
    exact, *others = values.values()
    for value in others:
        assert value == pytest.approx(exact, rel=0.05)
        assert value != exact


@pytest.mark.parametrize("dtype", [jnp.int8, bool], ids=str)
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match="precision, compute: expected a floating-point type"):
        wrappers.precision(tiny.student, dtype)
