"""BatchNorm under an adapter: masked equals dropped, and Flax computes unmasked batches itself."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd import adapters
from tests.adapters import models

KEY = jax.random.key(0)
KEEP = np.array([True, False, True, True, False, True])
BATCH = {"image": np.random.default_rng(0).normal(1, 2, size=(6, 2, 2, 2)).astype(np.float32)}
DROPPED = {"image": BATCH["image"][KEEP]}

MODELS = {
    f"{name}_{'fast' if fast else 'two_pass'}": make(fast)
    for fast in (True, False)
    for name, make in {
        "linen_constructor": lambda fast: adapters.linen(models.Net(fast)),
        "linen_call": lambda fast: adapters.linen(models.ByCall(fast)),
        "nnx": lambda fast: adapters.nnx(functools.partial(models.NnxNet, fast=fast)),
    }.items()
}


@functools.cache
def variables_of(name):
    return MODELS[name].init(KEY, BATCH)


@functools.cache
def compiled(name):
    """Returns training-mode logits, new state and gradients of a function of the unmasked logits."""

    @jax.jit
    def run(variables, batch):
        def loss(params):
            outputs, state = MODELS[name].apply(variables._replace(params=params), batch, key=KEY, train=True)
            values = jnp.sum(jnp.sin(outputs["logits"]), axis=-1)
            return jnp.sum(values if "mask" not in batch else jnp.where(batch["mask"], values, 0)), (outputs, state)

        gradients, (outputs, state) = jax.grad(loss, has_aux=True)(variables.params)
        return outputs["logits"], state, gradients

    return functools.partial(run, variables_of(name))


def garbage(value):
    image = BATCH["image"].copy()
    image[~KEEP] = value
    return {"image": image, "mask": KEEP}


@pytest.mark.parametrize("name", MODELS)
def test_masked_examples_equal_dropped_examples(name):
    logits, state, gradients = compiled(name)(garbage(1e3))
    expected_logits, expected_state, expected_gradients = compiled(name)(DROPPED)
    np.testing.assert_allclose(logits[KEEP], expected_logits, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(state, expected_state, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(gradients, expected_gradients, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_training_updates_the_statistics_and_inference_keeps_them(name):
    variables = variables_of(name)
    _, after = MODELS[name].apply(variables, BATCH, key=KEY, train=False)
    chex.assert_trees_all_equal(after, variables.state)
    _, after, _ = compiled(name)(BATCH)
    chex.assert_trees_all_equal_shapes_and_dtypes(after, variables.state)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), variables.state, after)
    assert len(jax.tree.leaves(moved)) == 2
    assert all(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", MODELS)
def test_a_fully_masked_batch_keeps_the_statistics_and_is_finite(name):
    logits, state, gradients = compiled(name)({**BATCH, "mask": np.zeros(6, bool)})
    chex.assert_trees_all_equal(state, variables_of(name).state)
    chex.assert_tree_all_finite((logits, gradients))


def test_inference_ignores_the_mask():
    for name, model in MODELS.items():
        plain, _ = model.apply(variables_of(name), BATCH, key=None, train=False)
        masked, _ = model.apply(variables_of(name), {**BATCH, "mask": KEEP}, key=None, train=False)
        chex.assert_trees_all_equal(plain, masked)


@pytest.mark.parametrize("fast", [True, False])
def test_an_unmasked_batch_equals_linen_bit_for_bit(fast):
    module = models.Net(fast)
    model = adapters.linen(module)
    variables = model.init(KEY, BATCH)
    expected, changed = module.apply(
        {"params": variables.params, **variables.state}, BATCH["image"], train=True, mutable=["batch_stats"]
    )
    found, state = model.apply(variables, BATCH, key=KEY, train=True)
    np.testing.assert_array_equal(found["logits"], expected)
    chex.assert_trees_all_equal(state, dict(changed))
    # A mask without False takes the other code path, equal to rounding.
    found, state = model.apply(variables, {**BATCH, "mask": np.ones(6, bool)}, key=KEY, train=True)
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(state, dict(changed), rtol=1e-5, atol=1e-6)


def test_an_unmasked_batch_equals_nnx_bit_for_bit():
    module = models.NnxNet(nnx.Rngs(0))
    model = adapters.nnx(module)
    variables = model.init(KEY, BATCH)
    found, state = model.apply(variables, BATCH, key=KEY, train=True)
    module.train()
    np.testing.assert_array_equal(found["logits"], module(jnp.asarray(BATCH["image"])))
    chex.assert_trees_all_equal(state, adapters.variables(module).state)


class Odd(nn.Module):
    """BatchNorm called by keyword, with a mask of its own, or on a reshaped input."""

    how: str

    @nn.compact
    def __call__(self, x, train):
        norm = nn.BatchNorm(use_running_average=not train)
        if self.how == "by_name":
            return norm(x=x)
        if self.how == "own_mask":
            return norm(x, mask=(jnp.arange(x.shape[0]) < 3).reshape(-1, 1, 1, 1))
        return norm(x.reshape(-1, x.shape[-1])).reshape(x.shape)


@pytest.mark.parametrize("how", ["by_name", "own_mask"])
def test_keyword_calls_and_own_masks_are_supported(how):
    model = adapters.linen(Odd(how))
    variables = model.init(KEY, BATCH)
    expected, expected_state = model.apply(variables, BATCH, key=KEY, train=True)
    found, state = model.apply(variables, {**BATCH, "mask": np.ones(6, bool)}, key=KEY, train=True)
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(state, expected_state, rtol=1e-5, atol=1e-6)


def test_a_reshaped_input_is_refused_under_a_mask():
    model = adapters.linen(Odd("reshaped"))
    with pytest.raises(ValueError, match="the batch has 6 examples but its input is"):
        model.apply(model.init(KEY, BATCH), {**BATCH, "mask": KEEP}, key=KEY, train=True)


def test_a_batch_norm_in_inference_mode_keeps_its_statistics():
    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.BatchNorm(use_running_average=True)(x)

    model = adapters.linen(Frozen())
    variables = model.init(KEY, BATCH)
    expected, _ = model.apply(variables, BATCH, key=KEY, train=True)
    found, state = model.apply(variables, {**BATCH, "mask": KEEP}, key=KEY, train=True)
    chex.assert_trees_all_equal((found, state), (expected, variables.state))
