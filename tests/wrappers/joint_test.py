"""Groups of models: members equal single models, copies equal a group, members can be replaced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters
from jaxkd.types import Variables
from jaxkd.wrappers import get_member, joint, replicate, set_member
from tests import tiny
from tests.schemes.peers_toy import normed

KEY, BATCH = jax.random.key(0), tiny.batch(6)
MODELS = {"a": tiny.student, "b": tiny.teacher_model, "c": normed}


def noisy():
    """A model that adds noise drawn from its key in training."""
    return adapters.plain(
        lambda key, x: jnp.ones(()),
        lambda w, x, key, train: w * x.mean((1, 2)) + (jax.random.normal(key, ()) if train else 0.0),
    )


def test_each_member_equals_the_model_alone():
    both = joint(MODELS)
    variables = both.init(KEY, BATCH)
    outputs, state = both.apply(variables, BATCH, key=KEY, train=True)
    for i, (name, model) in enumerate(MODELS.items()):
        own = model.init(jax.random.fold_in(KEY, i), BATCH)
        tiny.assert_equal(get_member(variables, name), own)
        found, new = model.apply(own, BATCH, key=jax.random.fold_in(KEY, i), train=True)
        for output, x in found.items():
            np.testing.assert_array_equal(outputs[f"{name}/{output}"], x)
        tiny.assert_equal(state[name], new)
    mean = sum(np.asarray(outputs[f"{name}/logits"]) for name in MODELS) / 3
    np.testing.assert_allclose(outputs["logits"], mean, rtol=1e-6)


def test_the_main_members_outputs_are_the_groups():
    both = joint(MODELS, main="b")
    outputs, _ = both.apply(both.init(KEY, BATCH), BATCH, key=None, train=False)
    for name in ("logits", "map", "vector"):
        np.testing.assert_array_equal(outputs[name], outputs[f"b/{name}"])
    other = adapters.plain(lambda key, x: jnp.ones(()), lambda w, x: w * x.reshape(x.shape[0], -1))
    wider = joint({**MODELS, "d": other}, main="a")  # without an average, logits may differ in shape
    assert wider.apply(wider.init(KEY, BATCH), BATCH, key=None, train=False)[0]["d/logits"].shape == (6, 32)


@pytest.mark.slow
@pytest.mark.parametrize("model", [tiny.student, normed, noisy()], ids=["plain", "batch_norm", "draws"])
@pytest.mark.parametrize("train", [True, False])
def test_copies_equal_a_group(model, train):
    stacked, named = replicate(model, 3), joint({str(i): model for i in range(3)})
    variables, others = stacked.init(KEY, BATCH), named.init(KEY, BATCH)
    for i in range(3):
        tiny.assert_close(get_member(variables, str(i)), get_member(others, str(i)), rtol=1e-6)
    key = KEY if train else None
    batch = {**BATCH, "mask": np.array([True, True, False, True, True, True])}
    outputs, state = stacked.apply(variables, batch, key=key, train=train)
    expected, new = named.apply(others, batch, key=key, train=train)
    tiny.assert_close(dict(outputs), dict(expected), atol=1e-5)
    for i in range(3):
        own = get_member(Variables(variables.params, state), str(i)).state
        tiny.assert_close(own, new[str(i)], atol=1e-5)


@pytest.mark.slow
def test_gradients_of_copies_equal_those_of_a_group():
    stacked, named = replicate(normed, 2), joint({"0": normed, "1": normed})

    def loss(params, model, state):
        outputs, _ = model.apply(Variables(params, state), BATCH, key=KEY, train=True)
        return jnp.sum(jnp.sin(outputs["0/logits"])) + jnp.sum(outputs["1/logits"] ** 2)

    found, expected = (
        Variables(jax.grad(loss)(variables.params, model, variables.state), variables.state)
        for model in (stacked, named)
        for variables in [model.init(KEY, BATCH)]
    )
    for name in "01":
        tiny.assert_close(get_member(found, name).params, get_member(expected, name).params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: joint({"0": normed, "1": normed}), lambda: replicate(normed, 2)])
def test_replace_member_inverts_member(make):
    variables = make().init(KEY, BATCH)
    new = normed.init(jax.random.key(9), BATCH)
    changed = set_member(variables, "1", new)
    tiny.assert_equal(get_member(changed, "1"), new)
    tiny.assert_equal(get_member(changed, "0"), get_member(variables, "0"))
    tiny.assert_equal(set_member(changed, "1", get_member(variables, "1")), variables)


def test_groups_nest():
    nested = joint({"peers": replicate(tiny.student, 2), "leader": tiny.teacher_model}, main="leader")
    variables = nested.init(KEY, BATCH)
    outputs, _ = nested.apply(variables, BATCH, key=None, train=False)
    assert {"peers/0/logits", "peers/1/vector", "peers/logits", "leader/map", "logits"} <= outputs.keys()
    own = get_member(get_member(variables, "peers"), "1")
    alone, _ = tiny.student.apply(own, BATCH, key=None, train=False)
    np.testing.assert_allclose(outputs["peers/1/logits"], alone["logits"], rtol=1e-5, atol=1e-6)


def test_mistakes_raise_errors_that_teach():
    with pytest.raises(ValueError, match="at least one, got none"):
        joint({})
    with pytest.raises(ValueError, match=r"hold no slash and are not .copies., got \['a/b'\]"):
        joint({"a/b": tiny.student})
    with pytest.raises(ValueError, match=r"main 'd'.*Available: 'a', 'b', 'c'"):
        joint(MODELS, main="d")
    with pytest.raises(ValueError, match="positive number of members, got 0"):
        replicate(tiny.student, 0)
    with pytest.raises(ValueError, match="whole, positive number of members"):
        replicate(tiny.student, 2.5)
    variables = replicate(tiny.student, 2).init(KEY, BATCH)
    with pytest.raises(ValueError, match=r"member '2'.*Available: '0', '1'"):
        get_member(variables, "2")
    with pytest.raises(ValueError, match="those of one"):
        get_member(Variables(jnp.ones(2)), "a")
    silent = adapters.plain(lambda key, x: jnp.ones(()), lambda w, x: {"f": w * x})
    broken = joint({"a": tiny.student, "b": silent})
    with pytest.raises(ValueError, match="output of 'b'"):
        broken.apply(broken.init(KEY, BATCH), BATCH, key=None, train=False)
    wide = adapters.plain(lambda key, x: jnp.ones(()), lambda w, x: w * x.reshape(x.shape[0], -1))
    broken = joint({"a": tiny.student, "b": wide})
    with pytest.raises(ValueError, match="logits of one shape"):
        broken.apply(broken.init(KEY, BATCH), BATCH, key=None, train=False)
