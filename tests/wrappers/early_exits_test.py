"""Early exits: the model is unchanged, trains through its exits, and a head keeps its own state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.types import Variables
from jaxkd.wrappers import Exit, get_member, with_exits
from tests import tiny
from tests.schemes.peers_toy import head, normed

KEY, BATCH = jax.random.key(0), tiny.batch(6)


def test_exits_leave_the_model_unchanged():
    model = with_exits(normed, {"one": Exit("vector", head(pool=False)), "two": Exit("vector", head(pool=False))})
    variables, alone = model.init(KEY, BATCH), normed.init(KEY, BATCH)
    tiny.assert_equal(get_member(variables, "model"), alone)
    outputs, state = model.apply(variables, BATCH, key=KEY, train=True)
    expected, new = normed.apply(alone, BATCH, key=KEY, train=True)
    tiny.assert_equal({name: outputs[name] for name in expected}, dict(expected))
    tiny.assert_equal(state["model"], new)
    for name in ("one", "two"):
        by_hand = np.asarray(expected["vector"]) @ np.asarray(variables.params[name])
        np.testing.assert_allclose(outputs[f"{name}/logits"], by_hand, rtol=1e-5, atol=1e-6)
    assert (variables.params["one"] != variables.params["two"]).all()


def test_gradients_reach_the_model_through_an_exit():
    model = with_exits(tiny.student, {"early": Exit("map", head())})
    variables = model.init(KEY, BATCH)

    def loss(params):
        return jnp.sum(model.apply(Variables(params, variables.state), BATCH, key=KEY, train=True)[0]["early/logits"])

    slope = jax.grad(loss)(variables.params)
    assert (slope["model"]["first"] != 0).any()
    assert (slope["model"]["second"] == 0).all()


def test_a_head_has_its_own_state_and_inputs():
    """The head has a BatchNorm and reads a feature map as its image."""
    from jaxkd.wrappers import with_inputs

    model = with_exits(tiny.student, {"early": Exit("map", with_inputs(normed, image="feature"))})
    variables = model.init(KEY, BATCH)
    outputs, state = model.apply(variables, BATCH, key=KEY, train=True)
    assert outputs["early/logits"].shape == (6, tiny.CLASSES)
    assert outputs["early/vector"].shape == (6, 4)
    own = get_member(variables, "early")
    seen = {**BATCH, "image": outputs["map"]}
    expected, new = normed.apply(own, seen, key=KEY, train=True)
    tiny.assert_close(state["early"], new)
    np.testing.assert_allclose(outputs["early/logits"], expected["logits"], rtol=1e-5, atol=1e-6)


def test_mistakes_raise_errors_that_teach():
    with pytest.raises(ValueError, match="at least one, got none"):
        with_exits(tiny.student, {})
    for name in ("", "a/b", "model"):
        with pytest.raises(ValueError, match="with_exits: expected names"):
            with_exits(tiny.student, {name: Exit("map", head())})
    with pytest.raises(ValueError, match=r"exit 'early', output of the model 'mpa'.*did you mean 'map'"):
        with_exits(tiny.student, {"early": Exit("mpa", head())}).init(KEY, BATCH)
