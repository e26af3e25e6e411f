"""Groups of models: members equal single models, copies equal a group, members can be replaced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters
from jaxkd.adapters.group import copies, group, member, replace_member
from jaxkd.types import Variables
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
    both = group(MODELS)
    variables = both.init(KEY, BATCH)
    outputs, state = both.apply(variables, BATCH, key=KEY, train=True)
    for i, (name, model) in enumerate(MODELS.items()):
        own = model.init(jax.random.fold_in(KEY, i), BATCH)
        tiny.assert_equal(member(variables, name), own)
        found, new = model.apply(own, BATCH, key=jax.random.fold_in(KEY, i), train=True)
        for output, x in found.items():
            np.testing.assert_array_equal(outputs[f"{name}/{output}"], x)
        tiny.assert_equal(state[name], new)
    mean = sum(np.asarray(outputs[f"{name}/logits"]) for name in MODELS) / 3
    np.testing.assert_allclose(outputs["logits"], mean, rtol=1e-6)


def test_the_main_members_outputs_are_the_groups():
    both = group(MODELS, main="b")
    outputs, _ = both.apply(both.init(KEY, BATCH), BATCH, key=None, train=False)
    for name in ("logits", "map", "vector"):
        np.testing.assert_array_equal(outputs[name], outputs[f"b/{name}"])
    other = adapters.plain(lambda key, x: jnp.ones(()), lambda w, x: w * x.reshape(x.shape[0], -1))
    wider = group({**MODELS, "d": other}, main="a")  # without an average, logits may differ in shape
    assert wider.apply(wider.init(KEY, BATCH), BATCH, key=None, train=False)[0]["d/logits"].shape == (6, 32)


@pytest.mark.parametrize("model", [tiny.student, normed, noisy()], ids=["plain", "batch_norm", "draws"])
@pytest.mark.parametrize("train", [True, False])
def test_copies_equal_a_group(model, train):
    stacked, named = copies(model, 3), group({str(i): model for i in range(3)})
    variables, others = stacked.init(KEY, BATCH), named.init(KEY, BATCH)
    for i in range(3):
        tiny.assert_close(member(variables, str(i)), member(others, str(i)), rtol=1e-6)
    key = KEY if train else None
    batch = {**BATCH, "mask": np.array([True, True, False, True, True, True])}
    outputs, state = stacked.apply(variables, batch, key=key, train=train)
    expected, new = named.apply(others, batch, key=key, train=train)
    tiny.assert_close(dict(outputs), dict(expected), atol=1e-5)
    for i in range(3):
        own = member(Variables(variables.params, state), str(i)).state
        tiny.assert_close(own, new[str(i)], atol=1e-5)


def test_gradients_of_copies_equal_those_of_a_group():
    stacked, named = copies(normed, 2), group({"0": normed, "1": normed})

    def loss(params, model, state):
        outputs, _ = model.apply(Variables(params, state), BATCH, key=KEY, train=True)
        return jnp.sum(jnp.sin(outputs["0/logits"])) + jnp.sum(outputs["1/logits"] ** 2)

    found, expected = (
        Variables(jax.grad(loss)(variables.params, model, variables.state), variables.state)
        for model in (stacked, named)
        for variables in [model.init(KEY, BATCH)]
    )
    for name in "01":
        tiny.assert_close(member(found, name).params, member(expected, name).params, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [lambda: group({"0": normed, "1": normed}), lambda: copies(normed, 2)])
def test_replace_member_inverts_member(make):
    variables = make().init(KEY, BATCH)
    new = normed.init(jax.random.key(9), BATCH)
    changed = replace_member(variables, "1", new)
    tiny.assert_equal(member(changed, "1"), new)
    tiny.assert_equal(member(changed, "0"), member(variables, "0"))
    tiny.assert_equal(replace_member(changed, "1", member(variables, "1")), variables)


def test_groups_nest():
    nested = group({"peers": copies(tiny.student, 2), "leader": tiny.teacher_model}, main="leader")
    variables = nested.init(KEY, BATCH)
    outputs, _ = nested.apply(variables, BATCH, key=None, train=False)
    assert {"peers/0/logits", "peers/1/vector", "peers/logits", "leader/map", "logits"} <= outputs.keys()
    own = member(member(variables, "peers"), "1")
    alone, _ = tiny.student.apply(own, BATCH, key=None, train=False)
    np.testing.assert_allclose(outputs["peers/1/logits"], alone["logits"], rtol=1e-5, atol=1e-6)


def test_mistakes_raise_errors_that_teach():
    with pytest.raises(ValueError, match="at least one, got none"):
        group({})
    with pytest.raises(ValueError, match=r"hold no slash and are not .copies., got \['a/b'\]"):
        group({"a/b": tiny.student})
    with pytest.raises(ValueError, match=r"main 'd'.*Available: 'a', 'b', 'c'"):
        group(MODELS, main="d")
    with pytest.raises(ValueError, match="positive number of members, got 0"):
        copies(tiny.student, 0)
    with pytest.raises(ValueError, match="whole, positive number of members"):
        copies(tiny.student, 2.5)
    variables = copies(tiny.student, 2).init(KEY, BATCH)
    with pytest.raises(ValueError, match=r"member '2'.*Available: '0', '1'"):
        member(variables, "2")
    with pytest.raises(ValueError, match="those of one"):
        member(Variables(jnp.ones(2)), "a")
    silent = adapters.plain(lambda key, x: jnp.ones(()), lambda w, x: {"f": w * x})
    broken = group({"a": tiny.student, "b": silent})
    with pytest.raises(ValueError, match="output of 'b'"):
        broken.apply(broken.init(KEY, BATCH), BATCH, key=None, train=False)
    wide = adapters.plain(lambda key, x: jnp.ones(()), lambda w, x: w * x.reshape(x.shape[0], -1))
    broken = group({"a": tiny.student, "b": wide})
    with pytest.raises(ValueError, match="logits of one shape"):
        broken.apply(broken.init(KEY, BATCH), BATCH, key=None, train=False)
