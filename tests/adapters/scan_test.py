"""Taps of modules under `nn.scan`: stacked, one layer, and errors that say what the scan lacks."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxkd import adapters

BATCH = {"image": np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.Dense(4, name="dense")(x), None


class Net(nn.Module):
    recorded: bool = True

    @nn.compact
    def __call__(self, x):
        axes = {"params": 0, **({"intermediates": 0} if self.recorded else {})}
        blocks = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)(name="blocks")
        return nn.Dense(2, name="head")(blocks(x, None)[0])


def test_a_tap_is_stacked_and_a_layer_can_be_selected():
    model = adapters.linen(Net(), taps={"all": "blocks/dense", "last": "blocks.dense[2]"})
    variables = model.init(jax.random.key(0), BATCH)
    found, _ = model.apply(variables, BATCH, key=None, train=False)
    x, expected = np.float64(BATCH["image"]), []
    own = jax.tree.map(np.float64, variables.params["blocks"]["dense"])
    for kernel, bias in zip(own["kernel"], own["bias"], strict=True):
        expected.append(x @ kernel + bias)
        x = x + expected[-1]
    np.testing.assert_allclose(found["all"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["last"], expected[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "tap", "message"),
    [
        (Net(), "blocks/dense[3]", r"expected 'blocks/dense' to have a layer 3 on its first axis.*\[3, 5, 4\]"),
        (Net(), "blocks/dens", "did you mean 'blocks/dense'"),
        (Net(recorded=False), "blocks/dense", r"Available: 'head'.*the scan has variable_axes=\{'intermediates': 0"),
    ],
    ids=["layer", "name", "not recorded"],
)
def test_a_tap_that_does_not_exist_is_an_error(module, tap, message):
    model = adapters.linen(module, taps={"f": tap})
    variables = adapters.linen(module).init(jax.random.key(0), BATCH)
    with pytest.raises(ValueError, match=message):
        model.apply(variables, BATCH, key=None, train=False)
