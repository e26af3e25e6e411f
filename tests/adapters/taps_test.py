"""Taps: submodule outputs by path, numbered calls, sown values, and errors that list the paths."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd import adapters
from jaxkd._core.model_calls import normalize
from tests.adapters import models

BATCH = {"image": np.random.default_rng(0).normal(size=(2, 4, 4, 2)).astype(np.float32)}
FLAT = {"image": BATCH["image"][:, 0, 0].repeat(2, axis=1)[:, :3]}
LINEN = models.Net()
KEY = jax.random.key(0)


def run(model, batch=BATCH):
    return model.apply(model.init(KEY, batch), batch, key=None, train=False)[0]


def test_linen_taps_at_several_depths():
    taps = {"stem": "stem", "convolved": "stem/conv", "normed": "stem.norm", "sown": "stem/before", "out": "head"}
    model = adapters.linen(LINEN, taps=taps)
    variables = model.init(KEY, BATCH)
    found, _ = model.apply(variables, BATCH, key=None, train=False)
    assert found.keys() == {"logits", *taps}
    params = variables.params["stem"]
    convolved = BATCH["image"] @ params["conv"]["kernel"][0, 0] + params["conv"]["bias"].reshape(1, 1, 1, -1)
    np.testing.assert_allclose(found["convolved"], convolved, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found["sown"], found["normed"])
    np.testing.assert_array_equal(found["stem"], nn.relu(found["normed"]))
    np.testing.assert_array_equal(found["out"], found["logits"])


def test_nnx_taps_at_several_depths():
    model = adapters.nnx(models.NnxNet, taps={"block": "blocks/0", "normed": "blocks.0.norm", "out": "head"})
    found = run(model)
    assert {name: x.shape for name, x in found.items()} == {
        "logits": (2, 2),
        "block": (2, 4, 4, 3),
        "normed": (2, 4, 4, 3),
        "out": (2, 2),
    }
    np.testing.assert_array_equal(found["block"], nn.relu(found["normed"]))


@pytest.mark.parametrize("adapt", [adapters.linen, adapters.nnx], ids=["linen", "nnx"])
def test_taps_change_no_other_output(adapt):
    module, tap = (LINEN, "stem/norm") if adapt is adapters.linen else (models.NnxNet, "blocks/0/norm")
    plain, tapped = adapt(module), adapt(module, taps={"f": tap})
    variables = plain.init(KEY, BATCH)
    for train in (False, True):
        expected, expected_state = plain.apply(variables, BATCH, key=KEY, train=train)
        found, state = tapped.apply(variables, BATCH, key=KEY, train=train)
        np.testing.assert_array_equal(found["logits"], expected["logits"])
        assert jax.tree.structure(state) == jax.tree.structure(expected_state) == jax.tree.structure(variables.state)
        jax.tree.map(np.testing.assert_array_equal, state, expected_state)


def test_gradients_reach_parameters_through_a_tap():
    model = adapters.linen(models.Twice(), taps={"first": "shared#0"})
    variables = model.init(KEY, FLAT)
    gradient = jax.grad(
        lambda v: jnp.sum(model.apply(v, FLAT, key=None, train=False)[0]["first"] ** 2), allow_int=True
    )(variables)
    assert (gradient.params["shared"]["kernel"] != 0).any()


@pytest.mark.parametrize("adapt", [adapters.linen, adapters.nnx], ids=["linen", "nnx"])
def test_a_number_selects_one_of_several_calls(adapt):
    module = models.Twice() if adapt is adapters.linen else models.NnxTwice
    found = run(adapt(module, taps={"a": "shared#0", "b": "shared#1"}), FLAT)
    np.testing.assert_array_equal(found["b"], found["logits"])
    assert (found["a"] != found["b"]).any()
    with pytest.raises(ValueError, match=r"'shared' is called 2 times; name the call, as in 'shared#0'"):
        run(adapt(module, taps={"a": "shared"}), FLAT)
    with pytest.raises(ValueError, match="there is no call 2"):
        run(adapt(module, taps={"a": "shared#2"}), FLAT)


@pytest.mark.parametrize(
    ("adapt", "module", "near", "listed"),
    [
        pytest.param(
            adapters.linen,
            LINEN,
            "stem/nrm",
            ["'stem/norm' float32[2, 4, 4, 3]", "'head' float32[2, 2]", "'stem/before' float32[2, 4, 4, 3]"],
            id="linen",
        ),
        pytest.param(
            adapters.nnx,
            models.NnxNet,
            "blocks/0/nrm",
            ["'blocks/0/norm' float32[2, 4, 4, 3]", "'head' float32[2, 2]", "'blocks/0' float32[2, 4, 4, 3]"],
            id="nnx",
        ),
    ],
)
def test_a_missing_tap_is_an_error_that_lists_all_paths(adapt, module, near, listed):
    with pytest.raises(ValueError, match=r"tap 'f', submodule .*did you mean '.*norm'") as error:
        run(adapt(module, taps={"f": near}))
    for name in listed:
        assert name in str(error.value)


def test_a_tap_with_the_name_of_an_output_is_refused():
    with pytest.raises(ValueError, match="taps: 'logits' is an output of the model already"):
        run(adapters.linen(LINEN, taps={"logits": "head"}))


def test_a_tap_of_several_arrays_is_refused():
    class Pair(nn.Module):
        def __call__(self, x):
            return x, x

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Pair(name="pair")(x)[0]

    with pytest.raises(ValueError, match="expected 'pair' to return one array, got tuple"):
        run(adapters.linen(Outer(), taps={"f": "pair"}))


@pytest.mark.parametrize(
    ("path", "normal"),
    {"a/b": ("a/b", None), "a.b": ("a/b", None), "a.b#0": ("a/b", 0), "a/b#12": ("a/b", 12)}.items(),
)
def test_paths_are_normalized(path, normal):
    assert normalize(path) == normal


@pytest.mark.parametrize("path", ["a#b", "a#-1"])
def test_a_call_that_is_not_a_number_is_refused(path):
    with pytest.raises(ValueError, match=re.escape("expected the number of a call after '#', as in 'a#0'")):
        normalize(path)


def test_sown_nnx_intermediates_can_be_tapped():
    class Sowing(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            self.sow(nnx.Intermediate, "before", x)
            return self.layer(x)

    found = run(adapters.nnx(Sowing, taps={"before": "before", "layer": "layer"}), FLAT)
    np.testing.assert_array_equal(found["before"], FLAT["image"])
