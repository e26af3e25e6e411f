"""Frozen parts: no gradient, no movement, no change of statistics, inference mode."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxkd
from jaxkd import Variables, adapters, losses, parallel, teachers, term, wrappers
from tests import tiny

KEY = jax.random.key(0)
BATCH = {
    "x": np.random.default_rng(0).normal(1, 2, (8, 4)).astype(np.float32),
    "label": np.arange(8, dtype=np.int32) % 3,
}


class Part(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, name="norm")(nn.Dense(4, name="dense")(x))
        return nn.Dropout(0.5, deterministic=not train)(x)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3, name="head")(Part(name="top")(Part(name="body")(x, train), train))


class NnxPart(nnx.Module):
    def __init__(self, rngs):
        self.dense, self.norm = nnx.Linear(4, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.drop(self.norm(self.dense(x)))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.body, self.top, self.head = NnxPart(rngs), NnxPart(rngs), nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.top(self.body(x)))


MODELS = {
    "linen": adapters.linen(Net(), inputs="x", taps={"body": "body"}),
    "nnx": adapters.nnx(NnxNet, inputs="x", taps={"body": "body"}),
}


def statistics(variables, part):
    state = variables.state
    return state.get("batch_stats", state)[part]


@pytest.mark.slow
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_part_does_not_move_and_the_rest_trains(name, mask):
    model = wrappers.freeze(MODELS[name], "^body/")
    objective = term(losses.cross_entropy, "student/logits", "batch/label")
    optimizer = optax.adamw(0.1, weight_decay=0.5)
    kd = jaxkd.distill(model, teachers.none(), objective, optimizer=optimizer)
    batch = {**BATCH, "mask": np.arange(8) < 6} if mask else BATCH
    state = kd.init(KEY, batch)
    assert not any(
        "body" in jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)
    )
    before = wrappers.unfreeze(state.student)
    step = jax.jit(kd.step)
    for _ in range(2):
        state, _ = step(state, batch)
    after = wrappers.unfreeze(state.student)
    tiny.assert_equal(after.params["body"], before.params["body"])
    tiny.assert_equal(statistics(after, "body"), statistics(before, "body"))
    for path in (("top", "dense"), ("head",)):
        old, new = (functools.reduce(lambda tree, key: tree[key], path, v.params)["kernel"] for v in (before, after))
        assert (new != old).all()
    assert (statistics(after, "top")["norm"]["mean"] != statistics(before, "top")["norm"]["mean"]).all()


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_the_part_is_in_inference_mode_and_the_rest_is_not(name, mask):
    frozen = wrappers.freeze(MODELS[name], "^body/")
    variables = frozen.init(KEY, BATCH)
    batch = {**BATCH, "mask": np.ones(8, bool)} if mask else BATCH
    plain = wrappers.unfreeze(variables)
    expected, _ = MODELS[name].apply(plain, batch, key=None, train=False)
    found, _ = frozen.apply(variables, batch, key=KEY, train=True)
    np.testing.assert_allclose(found["body"], expected["body"], rtol=1e-5, atol=1e-6)
    trained, _ = MODELS[name].apply(plain, batch, key=KEY, train=True)
    assert (trained["body"] != expected["body"]).any()
    assert (np.abs(found["logits"] - expected["logits"]) > 1e-3).any()
    infer, state = frozen.apply(variables, batch, key=None, train=False)
    np.testing.assert_allclose(infer["logits"], expected["logits"], rtol=1e-5, atol=1e-6)
    tiny.assert_equal(state, variables.state)


def test_gradients_pass_through_the_part():
    linear = adapters.plain(
        lambda key, x: {"a": jnp.eye(2), "b": 3 * jnp.eye(2)}, lambda w, x: x @ w["a"] @ w["b"], inputs="x"
    )
    model = wrappers.freeze(linear, "^b")
    variables = model.init(KEY, {"x": jnp.eye(2)})

    def total(params):
        return model.apply(variables._replace(params=params), {"x": jnp.eye(2)}, key=None, train=True)[0][
            "logits"
        ].sum()

    assert jax.tree.map(lambda x: x.tolist(), jax.grad(total)(variables.params)) == {"a": [[3, 3], [3, 3]], "b": None}


@pytest.mark.slow
def test_composes_with_accumulation_and_placement():
    model = wrappers.accumulate(wrappers.freeze(MODELS["linen"], "^body/"), 2)
    objective = term(losses.cross_entropy, "student/logits", "batch/label")
    kd = jaxkd.distill(model, teachers.none(), objective, optimizer=optax.adamw(0.1, weight_decay=0.5))
    placed = parallel.pmap(kd, jax.devices()[:2])
    state = placed.init(KEY, BATCH)
    before = jax.tree.map(np.asarray, wrappers.unfreeze(state.student))
    state, _ = placed(state, BATCH)
    after = wrappers.unfreeze(state.student)
    tiny.assert_equal(
        (after.params["body"], statistics(after, "body")), (before.params["body"], statistics(before, "body"))
    )
    assert (after.params["head"]["kernel"] != before.params["head"]["kernel"]).all()


@pytest.mark.parametrize(("include", "found"), [("^bod$", "no path"), ("", "every path")])
def test_a_part_that_is_nothing_or_everything_is_refused(include, found):
    with pytest.raises(
        ValueError, match=f"freeze, include: expected an expression for a part .* in {found}: 'body/dense"
    ):
        wrappers.freeze(MODELS["linen"], include).init(KEY, BATCH)


def test_variables_of_another_model_are_refused():
    with pytest.raises(ValueError, match="unfreeze: expected the variables of a model from freeze"):
        wrappers.unfreeze(Variables({"w": 1}, {"batch_stats": {}}))
