"""`per_model` updates each member as its optimizer would alone."""

import chex
import jax
import jax.numpy as jnp
import optax
import pytest

from jaxkd.distillers import per_model

CLIPPED = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9), optax.add_decayed_weights(-0.01))
PARAMS = {
    "a": {"w": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)},
    "b": {"w": jnp.array([0.5, 0.0]), "b": jnp.array(1.0)},
}
GRADS = {
    "a": {"w": jnp.array([10.0, 0.0]), "b": jnp.array(3.0)},
    "b": {"w": jnp.array([0.1, 0.2]), "b": jnp.array(0.0)},
}


def trained(optimizer, params, grads, steps=3):
    state = optimizer.init(params)
    for _ in range(steps):
        updates, state = jax.jit(optimizer.update)(grads, state, params)
        params = optax.apply_updates(params, updates)
    return params


def stacked(tree):
    return {"copies": jax.tree.map(lambda *x: jnp.stack(x), tree["a"], tree["b"])}


def test_each_member_is_updated_as_alone():
    found = trained(per_model(CLIPPED), PARAMS, GRADS)
    alone = {name: trained(CLIPPED, PARAMS[name], GRADS[name]) for name in PARAMS}
    chex.assert_trees_all_close(found, alone, rtol=1e-6)
    together = trained(CLIPPED, PARAMS, GRADS)
    assert abs(float(together["b"]["w"][0] - found["b"]["w"][0])) > 1e-4  # a joint optimizer differs
    chex.assert_trees_all_close(trained(per_model(CLIPPED), stacked(PARAMS), stacked(GRADS)), stacked(alone), rtol=1e-6)


def test_optimizers_by_name_and_nested_groups():
    both = per_model({"a": CLIPPED, "b": optax.sgd(1.0), "c": CLIPPED})
    found = trained(both, PARAMS, GRADS)
    chex.assert_trees_all_close(found["a"], trained(CLIPPED, PARAMS["a"], GRADS["a"]), rtol=1e-6)
    chex.assert_trees_all_close(found["b"], trained(optax.sgd(1.0), PARAMS["b"], GRADS["b"]), rtol=1e-6)
    nested = per_model({"all": per_model(CLIPPED), "one": optax.sgd(1.0)})
    found = trained(nested, {"all": PARAMS, "one": PARAMS["b"]}, {"all": GRADS, "one": GRADS["b"]})
    chex.assert_trees_all_close(found["all"], trained(per_model(CLIPPED), PARAMS, GRADS), rtol=1e-6)


def test_member_without_parameters():
    optimizer = per_model(optax.clip_by_global_norm(1.0))
    assert optimizer.init({}) == {}
    assert optimizer.update({}, {}, {}) == ({}, {})
    for params, grads in ((PARAMS, GRADS), (stacked(PARAMS), stacked(GRADS))):
        updates, _ = optimizer.update(grads, optimizer.init(params))
        chex.assert_trees_all_equal_shapes(updates, grads)


def test_extra_arguments_reach_the_optimizer():
    scaled = optax.GradientTransformationExtraArgs(
        optax.identity().init,
        lambda updates, state, params=None, *, by: (jax.tree.map(lambda x: by * x, updates), state),
    )
    for params in (PARAMS, stacked(PARAMS)):
        optimizer = per_model(scaled)
        updates, _ = optimizer.update(params, optimizer.init(params), params, by=2.0)
        chex.assert_trees_all_close(updates, jax.tree.map(lambda x: 2 * x, params), rtol=1e-6)


def test_invalid_uses_are_refused():
    with pytest.raises(ValueError, match=r"optimizer of 'b'.*Available: 'a'"):
        per_model({"a": CLIPPED}).init(PARAMS)
    with pytest.raises(ValueError, match="dict by member"):
        per_model(CLIPPED).init(jnp.ones(2))
    with pytest.raises(ValueError, match="one program"):
        per_model({"a": CLIPPED}).init(stacked(PARAMS))
