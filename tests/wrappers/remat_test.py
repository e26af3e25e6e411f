"""Rematerialization: unchanged results, less memory, by the wrapper and by Flax's own remat."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxkd
from jaxkd import adapters, wrappers
from jaxkd._core.batch_norm import replicas
from tests.adapters import models
from tests.adapters.jaxprs import operations

KEY = jax.random.key(0)
KEEP = np.arange(8) % 3 != 1
BATCH = {"image": np.random.default_rng(0).normal(1, 2, size=(8, 2, 2, 2)).astype(np.float32), "mask": KEEP}
MODELS = {
    "linen": adapters.linen(models.Net(), taps={"stem": "stem"}),
    "nnx": adapters.nnx(models.NnxNet, taps={"stem": "blocks/0"}),
}
POLICIES = {
    "nothing": None,
    "products": jax.checkpoint_policies.dots_saveable,
    "everything": jax.checkpoint_policies.everything_saveable,
}


def trained(model, variables, batch=BATCH, *, key=KEY):
    """Returns gradients, outputs and state of a training pass."""

    @jax.jit
    def run(variables):
        def loss(params):
            outputs, state = model.apply(variables._replace(params=params), batch, key=key, train=True)
            values = [jnp.sum(jnp.sin(x), axis=tuple(range(1, x.ndim))) for x in outputs.values()]
            return sum(jnp.sum(jnp.where(batch["mask"], v, 0)) for v in values), (outputs, state)

        return jax.grad(loss, has_aux=True)(variables.params)

    return run(variables)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", MODELS)
def test_gradients_state_and_taps_are_unchanged(name, policy):
    model = MODELS[name]
    variables = model.init(KEY, BATCH)
    found = trained(wrappers.remat(model, POLICIES[policy]), variables)
    expected = trained(model, variables)
    chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)
    _, (outputs, state) = found
    assert outputs.keys() == {"logits", "stem"}
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (state, variables.state)), strict=True))


def test_recomputation_uses_the_same_dropout_mask():
    model = adapters.linen(models.Dropped())
    batch = {"image": jnp.ones((8, 16)), "mask": np.ones(8, bool)}
    draw = lambda model: model.apply(model.init(KEY, batch), batch, key=KEY, train=True)[0]["logits"]  # noqa: E731
    np.testing.assert_array_equal(draw(wrappers.remat(model)), draw(model))


def test_inference_is_not_rematerialized():
    model = MODELS["linen"]
    variables = model.init(KEY, BATCH)
    for train in (True, False):
        jaxpr = jax.make_jaxpr(lambda v, t=train: wrappers.remat(model).apply(v, BATCH, key=KEY, train=t))(variables)
        assert any("checkpoint" in e.primitive.name or "remat" in e.primitive.name for e in operations(jaxpr)) == train


# --- memory ---------------------------------------------------------------------------------------------------------

LAYERS, WIDTH, ROWS = 8, 32, 256
DEEP = {"image": np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)}


def deep(layer):
    def init(key, x):
        return jax.random.normal(key, (LAYERS, WIDTH, WIDTH)) / 8

    return adapters.plain(init, lambda w, x: jax.lax.scan(lambda x, w: (layer(w, x), None), x, w)[0])


def layer(w, x):
    return x + jax.nn.gelu(x @ w)


def logits(model):
    return lambda params: model.apply(jaxkd.Variables(params), DEEP, key=None, train=True)[0]["logits"]


def test_residuals_between_the_passes():
    def kept(model):
        params = model.init(KEY, DEEP).params
        # The leaves of a pullback are the residuals of the forward pass.
        return sum(x.nbytes for x in jax.tree.leaves(jax.vjp(logits(model), params)[1]))

    model = deep(layer)
    activation = ROWS * WIDTH * 4
    params = LAYERS * WIDTH**2 * 4
    own = params + activation + 1024  # parameters, the batch and scalars
    assert kept(model) > own + 3 * LAYERS * activation
    assert kept(wrappers.remat(model)) <= own
    products = kept(wrappers.remat(model, jax.checkpoint_policies.dots_saveable))
    assert LAYERS * activation <= products <= own + LAYERS * activation


def test_rematerialized_blocks_take_less_memory():
    def temporary(model):
        params = model.init(KEY, DEEP).params
        gradient = jax.jit(jax.grad(lambda params: jnp.sum(logits(model)(params) ** 2)))
        return gradient.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporary(deep(jax.checkpoint(layer, prevent_cse=False))) < 0.4 * temporary(deep(layer))


class Rematerialized(nn.Module):
    """`models.Net` with a rematerialized block."""

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.remat(models.Block, static_argnums=(2,))(3, name="stem")(x, train)
        return nn.Dense(2, name="head")(x.mean(axis=(1, 2)))


class NnxRematerialized(models.NnxNet):
    def __call__(self, x):
        for block in self.blocks:
            x = nnx.remat(lambda block, x: block(x))(block, x)
        return self.head(x.mean(axis=(1, 2)))


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    ("name", "own"),
    [("linen", adapters.linen(Rematerialized())), ("nnx", adapters.nnx(NnxRematerialized))],
    ids=["linen", "nnx"],
)
def test_flax_remat_inside_a_model_is_supported(name, own, count):
    """The BatchNorms inside are still computed by replica and mask."""
    plain = {"linen": adapters.linen(models.Net()), "nnx": adapters.nnx(models.NnxNet)}[name]
    variables = plain.init(KEY, BATCH)
    with replicas(count):
        found, expected = trained(own, variables), trained(plain, variables)
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


def test_composes_with_input_gradients():
    batch = {"image": BATCH["image"], "mask": np.ones(8, bool)}
    wrapped = functools.partial(wrappers.with_input_gradient, class_path="batch/label")
    batch["label"] = np.zeros(8, int)
    found, expected = (wrapped(model) for model in (wrappers.remat(MODELS["linen"]), MODELS["linen"]))
    variables = expected.init(KEY, batch)
    chex.assert_trees_all_close(
        trained(found, variables, batch), trained(expected, variables, batch), rtol=1e-5, atol=1e-5
    )
