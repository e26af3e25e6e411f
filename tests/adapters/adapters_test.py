"""The `Model` contract of the linen, nnx and plain adapters: inputs, outputs, modes, keys and state."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd import ObjectiveVars, TrainState, Variables, adapters
from tests.adapters import models

KEY = jax.random.key(0)
BATCH = {"image": np.ones((4, 8), np.float32), "other": np.full((4, 8), 2, np.float32)}


def both(linen, of_nnx):
    return pytest.mark.parametrize("model", [adapters.linen(linen), adapters.nnx(of_nnx)], ids=["linen", "nnx"])


def apply(model, batch=BATCH, key=None, train=False):
    return model.apply(model.init(KEY, batch), batch, key=key, train=train)[0]


@both(models.Dropped(), models.NnxDropped)
def test_dropout_depends_on_the_key_and_is_off_in_inference(model):
    first, again = (apply(model, key=jax.random.key(1), train=True)["logits"] for _ in range(2))
    other = apply(model, key=jax.random.key(2), train=True)["logits"]
    np.testing.assert_array_equal(first, again)
    assert set(np.unique(first)) == {0, 2}
    assert (first != other).any()
    np.testing.assert_array_equal(apply(model)["logits"], BATCH["image"])
    np.testing.assert_array_equal(apply(model, key=jax.random.key(1))["logits"], BATCH["image"])


@both(models.Dropped(), models.NnxDropped)
def test_dropout_accepts_typed_and_raw_keys(model):
    assert set(np.unique(apply(model, key=jax.random.PRNGKey(1), train=True)["logits"])) == {0, 2}


class Sum(nn.Module):
    def __call__(self, a, b):
        return a + b


@pytest.mark.parametrize(
    "inputs",
    [("image", "other"), ["image", "other"], lambda batch: (batch["image"], batch["other"])],
    ids=["tuple", "list", "function"],
)
def test_inputs_are_names_or_a_function_of_the_batch(inputs):
    np.testing.assert_array_equal(apply(adapters.linen(Sum(), inputs=inputs))["logits"], 3)


@pytest.mark.parametrize("adapt", [adapters.linen, adapters.nnx, adapters.plain], ids=["linen", "nnx", "plain"])
def test_a_missing_input_is_an_error_that_lists_the_batch(adapt):
    arguments = {
        adapters.linen: (models.Twice(),),
        adapters.nnx: (models.NnxTwice,),
        adapters.plain: (lambda key, x: {}, lambda params, x: x),
    }[adapt]
    model = adapt(*arguments, inputs="imag")
    with pytest.raises(ValueError, match=r"'imag'.*'image' float32\[4, 8\], 'other' float32\[4, 8\].*inputs="):
        model.apply(model.init(KEY, BATCH) if adapt is adapters.nnx else Variables({}), BATCH, key=None, train=False)


class Returns(nn.Module):
    kind: str

    def __call__(self, x):
        return {"array": x, "mapping": {"logits": x, "aux": 2 * x}, "tuple": (x, 2 * x), "none": None}[self.kind]


@pytest.mark.parametrize(
    ("kind", "outputs", "expected"),
    [
        pytest.param("array", None, {"logits": 1}, id="array"),
        pytest.param("mapping", None, {"logits": 1, "aux": 2}, id="mapping"),
        pytest.param("tuple", lambda out: {"logits": out[1]}, {"logits": 2}, id="tuple-as-mapping"),
        pytest.param("tuple", lambda out: out[1], {"logits": 2}, id="tuple-as-array"),
    ],
)
def test_outputs_are_named(kind, outputs, expected):
    found = apply(adapters.linen(Returns(kind), outputs=outputs))
    assert {name: float(x[0, 0]) for name, x in found.items()} == expected


@pytest.mark.parametrize("kind", ["tuple", "none"])
def test_unnamed_outputs_are_refused(kind):
    with pytest.raises(ValueError, match=r"expected an array .* or a mapping.*outputs=lambda"):
        apply(adapters.linen(Returns(kind)))


@pytest.mark.parametrize(
    ("function", "train", "infer"),
    [
        pytest.param(lambda w, x, train: x + train, 2, 1, id="train"),
        pytest.param(lambda w, x, *, training: x + training, 2, 1, id="training"),
        pytest.param(lambda w, x, is_training: x + is_training, 2, 1, id="is_training"),
        pytest.param(lambda w, x, deterministic: x + deterministic, 1, 2, id="deterministic"),
        pytest.param(lambda w, x: x, 1, 1, id="none"),
        pytest.param(lambda w, x, key: x + (key is not None), 2, 1, id="key"),
    ],
)
def test_plain_functions_get_the_flags_and_keys_that_they_accept(function, train, infer):
    model = adapters.plain(lambda key, x: {"w": jnp.ones(x.shape[-1])}, function)
    assert float(apply(model, key=KEY, train=True)["logits"][0, 0]) == train
    assert float(apply(model)["logits"][0, 0]) == infer


def test_plain_parameters_may_be_any_pytree():
    model = adapters.plain(lambda key, x: [jnp.ones((8, 2)), ()], lambda w, x: {"logits": x @ w[0], "f": x})
    variables = model.init(KEY, BATCH)
    assert jax.tree.structure(variables.params) == jax.tree.structure([0, ()])
    assert apply(model).keys() == {"logits", "f"}


def test_variables_accepts_every_known_form():
    collections = {"params": {"w": 1}, "batch_stats": {"m": 2}, "intermediates": {"x": 3}}
    assert adapters.variables(collections) == Variables({"w": 1}, {"batch_stats": {"m": 2}})
    given = Variables({"w": 1})
    assert adapters.variables(given) is given
    module = models.NnxNet(nnx.Rngs(0))
    found = adapters.variables(module)
    np.testing.assert_array_equal(found.params["head"]["kernel"], module.head.kernel[...])
    assert {x.shape for x in jax.tree.leaves(found.state)} == {(3,)}


@pytest.mark.parametrize("source", [{"w": 1}, 3, None, [1]], ids=str)
def test_variables_refuses_other_forms(source):
    with pytest.raises(TypeError, match=r"expected Variables\(params, state\), linen's .* or an nnx module"):
        adapters.variables(source)


def test_variables_refuses_a_state_and_names_its_student():
    state = TrainState(Variables({}), {}, ObjectiveVars(), {}, jnp.int32(0), KEY)
    with pytest.raises(TypeError, match=r"got TrainState\. Its student is `\.student`"):
        adapters.variables(state)


IMAGES = {"image": np.random.default_rng(0).normal(size=(4, 2, 2, 2)).astype(np.float32)}


def test_nnx_init_returns_an_instances_weights_or_constructs_them_from_the_key():
    instance = models.NnxNet(nnx.Rngs(5))
    for key in (0, 1):
        made = adapters.nnx(instance).init(jax.random.key(key), IMAGES)
        chex.assert_trees_all_equal(made, adapters.variables(instance))
    first, second = (adapters.nnx(models.NnxNet).init(jax.random.key(key), IMAGES) for key in (0, 1))
    assert (first.params["head"]["kernel"] != second.params["head"]["kernel"]).any()


@pytest.mark.parametrize("taps", [None, {"f": "blocks/0"}], ids=["plain", "tapped"])
def test_an_nnx_instance_is_never_changed(taps):
    instance = models.NnxNet(nnx.Rngs(5))
    before = jax.tree.map(np.array, adapters.variables(instance))
    graph = nnx.graphdef(instance)
    model = adapters.nnx(instance, taps=taps)
    variables = model.init(KEY, IMAGES)
    masked = {**IMAGES, "mask": np.array([True, True, True, False])}
    for batch in (IMAGES, masked):
        model.apply(variables, batch, key=KEY, train=True)
        jax.jit(lambda v, b: model.apply(v, b, key=KEY, train=True))(variables, batch)
    model.apply(variables, IMAGES, key=None, train=False)
    chex.assert_trees_all_equal(adapters.variables(instance), before)
    assert nnx.graphdef(instance) == graph
    assert type(instance.blocks[0].norm) is nnx.BatchNorm
    instance(jnp.asarray(IMAGES["image"]))  # fails if a tracer leaked into the instance


class Sows(nn.Module):
    @nn.compact
    def __call__(self, x):
        self.sow("losses", "auxiliary", jnp.sum(x))
        return x


def test_the_state_keeps_its_structure_when_a_model_sows():
    model = adapters.linen(Sows())
    variables = model.init(KEY, BATCH)
    _, state = model.apply(variables, BATCH, key=KEY, train=True)
    chex.assert_trees_all_equal_structs(state, variables.state)
