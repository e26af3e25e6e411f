"""Weights of smaller students: layers left out, and units pruned over the whole model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from jaxkd import Variables, adapters, models, weights

TOKENS = {"tokens": jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])}


@functools.cache
def decoder(**fields):
    """Returns a decoder of two layers, as a model."""
    sizes = {"vocabulary": 11, "width": 12, "layers": 2, "heads": 4, "key_value_heads": 2, "head_dim": 4}
    config = models.DecoderConfig(**sizes | {"mlp_width": 10, "norm_epsilon": 1e-12, "tied": False} | fields)
    return adapters.nnx(lambda rngs: models.Decoder(config, rngs=rngs), inputs="tokens")


def logits(model, variables):
    apply = jax.jit(lambda variables: model.apply(variables, TOKENS, key=None, train=False)[0]["logits"])
    return np.asarray(apply(variables))


def initial(model):
    """Returns random variables, biases and scales included."""
    rng = np.random.default_rng(0)
    like = jax.eval_shape(model.init, jax.random.key(0), TOKENS)

    def drawn(path, x):
        around = 1.0 if str(path[-1].key) == "scale" else 0.0
        return jnp.asarray(around + 0.3 * rng.normal(size=x.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(drawn, like)


# --- layers -----------------------------------------------------------------------------------------------------------


def test_layers_are_renumbered_and_the_rest_is_kept():
    variables = initial(decoder(layers=3))
    kept = weights.flatten(weights.drop_layers(variables, range(0, 3, 2)))
    old = weights.flatten(variables)
    for name, value in kept.items():
        np.testing.assert_array_equal(value, old[name.replace("layers/1", "layers/2")])
    assert {name for name in old if "layers/2" not in name} == kept.keys()


def test_a_dropped_layer_that_adds_nothing_changes_no_logit():
    variables = initial(decoder())
    for module, leaf in (("attention", "out"), ("mlp", "down")):
        layer = variables.params["layers"][0][module][leaf]
        layer["kernel"] = jnp.zeros_like(layer["kernel"])
    small = weights.drop_layers(variables, [1])
    np.testing.assert_allclose(logits(decoder(layers=1), small), logits(decoder(), variables), atol=1e-5)


def test_layers_of_linen_are_numbered_in_their_names():
    class Net(linen.Module):
        depth: int

        @linen.compact
        def __call__(self, x):
            for number in range(self.depth):
                x = linen.BatchNorm(use_running_average=True, name=f"block_{number}")(x)
            return linen.Dense(2)(x)

    variables = Net(3).init(jax.random.key(0), jnp.ones((1, 4)))
    variables = jax.tree.map(lambda x: x + jnp.arange(x.size, dtype=x.dtype).reshape(x.shape), variables)
    variables["batch_stats"]["block_2"]["mean"] = jnp.full(4, 7.0)
    small = weights.drop_layers(variables, [2, 0], stack="block")
    assert small.params.keys() == {"block_0", "block_1", "Dense_0"}
    np.testing.assert_array_equal(small.state["batch_stats"]["block_0"]["mean"], np.full(4, 7.0))
    Net(2).apply({"params": small.params, **small.state}, jnp.ones((1, 4)))


@pytest.mark.parametrize(
    ("numbers", "stack", "message"),
    [
        ([0, 2], "layers", r"expected numbers of the 2 layers in 'layers', got also \[2\]"),
        ([0, 0], "layers", r"different numbers, got \[0, 0\]"),
        ([], "layers", r"one or more different numbers, got \[\]"),
        ([0], "encoder/layers", r"numbered layers, got 'encoder/layers'. The model has .*layers"),
        ([0], "layer", "numbered layers, got 'layer'"),
    ],
)
def test_layers_that_do_not_exist(numbers, stack, message):
    with pytest.raises(ValueError, match=message):
        weights.drop_layers(jax.eval_shape(decoder().init, jax.random.key(0), TOKENS), numbers, stack=stack)


# --- width ------------------------------------------------------------------------------------------------------------

BIASED = {"attention_bias": True, "mlp_bias": True}


def edited(variables, edit):
    """Returns variables with ``edit(name, array) -> array`` applied to NumPy copies."""
    names = [name.removeprefix("params/") for name in weights.flatten(variables)]
    leaves = [jnp.asarray(edit(name, np.array(x))) for name, x in zip(names, jax.tree.leaves(variables), strict=True)]
    return jax.tree.unflatten(jax.tree.structure(variables), leaves)


def test_units_of_mlps_that_are_dead_change_nothing():
    """Which units are dead differs between the layers."""
    variables, importance = initial(decoder(**BIASED)), np.ones((2, 10))
    dead = {0: [0, 3, 9], 1: [2, 4, 5]}
    for layer, units in dead.items():
        importance[layer, units] = 0

    def kill(name, x):
        for layer, units in dead.items():
            if name.startswith(f"layers/{layer}/mlp/gate"):
                x[..., units] = 0  # silu(0) = 0
        return x

    variables = edited(variables, kill)
    small = weights.prune_width(variables, {"mlp_width": importance}, {"mlp_width": 7})
    np.testing.assert_allclose(
        logits(decoder(**BIASED, mlp_width=7), small), logits(decoder(**BIASED), variables), atol=1e-5
    )


def test_key_value_heads_leave_with_their_query_heads():
    variables, importance = initial(decoder(**BIASED)), np.array([[1.0, 0.0], [0.2, 0.5]])
    dead = {0: 1, 1: 0}

    def kill(name, x):
        for layer, head in dead.items():
            if name.startswith(f"layers/{layer}/attention/value"):
                x[..., 4 * head : 4 * head + 4] = 0
        return x

    variables = edited(variables, kill)
    small = weights.prune_width(variables, {"key_value_heads": importance}, {"key_value_heads": 1})
    smaller = decoder(**BIASED, heads=2, key_value_heads=1)
    np.testing.assert_allclose(logits(smaller, small), logits(decoder(**BIASED), variables), atol=1e-5)


@pytest.mark.parametrize(("norm", "tied"), [("rms", False), ("layer", True)])
def test_features_of_the_residual_stream_that_are_dead_change_nothing(norm, tied):
    """For LayerNorm, whose mean depends on the number of features, the mean of all features is 0."""
    fields, dead = {**BIASED, "norm": norm, "tied": tied}, [1, 4, 5, 11]
    alive = np.setdiff1d(np.arange(12), dead)

    def kill(name, x):
        written = "embedding" in name or "/out/" in name or "/down/" in name
        if written or "norm" in name:
            x[..., dead] = 0
        if written and norm == "layer":
            x[..., alive] -= x[..., alive].mean(-1, keepdims=True)
        return x

    variables = edited(initial(decoder(**fields)), kill)
    importance = np.ones(12)
    importance[dead] = 0
    small = weights.prune_width(variables, {"width": importance}, {"width": 8})
    np.testing.assert_allclose(
        logits(decoder(**fields, width=8), small), logits(decoder(**fields), variables), atol=2e-5
    )


def test_the_most_important_units_are_kept_in_their_order():
    variables = initial(decoder())
    scores = np.random.default_rng(0).uniform(1, 2, (2, 10))
    small = weights.prune_width(variables, {"mlp_width": scores}, {"mlp_width": 4})
    for layer in range(2):
        units = sorted(range(10), key=lambda unit: -scores[layer, unit])[:4]
        for name, axis in (("up", 1), ("gate", 1), ("down", 0)):
            old, new = (v.params["layers"][layer]["mlp"][name]["kernel"] for v in (variables, small))
            np.testing.assert_array_equal(new, np.take(old, sorted(units), axis))


def test_features_of_equal_energy_keep_the_scales_of_the_norms():
    """√(s · old / new) is 1 where the kept share s of the energy is that of the features."""
    variables = initial(decoder())
    small = weights.prune_width(variables, {"width": np.ones(12)}, {"width": 6})
    np.testing.assert_allclose(
        small.params["final_norm"]["scale"], variables.params["final_norm"]["scale"][:6], rtol=1e-6
    )
    same = weights.prune_width(
        variables,
        {"width": np.arange(12.0), "key_value_heads": np.ones((2, 2)), "mlp_width": np.ones((2, 10))},
        {"width": 12, "key_value_heads": 2, "mlp_width": 10},
    )
    jax.tree.map(np.testing.assert_array_equal, same, variables)


def test_all_sizes_at_once_fit_the_smaller_model():
    sizes = {"width": 8, "key_value_heads": 1, "mlp_width": 6}
    importance = {"width": np.arange(12.0), "key_value_heads": np.ones((2, 2)), "mlp_width": np.ones((2, 10))}
    small = weights.prune_width(initial(decoder()), importance, sizes)
    smaller = decoder(width=8, heads=2, key_value_heads=1, mlp_width=6)
    assert jax.tree.map(jnp.shape, small) == jax.tree.map(jnp.shape, initial(smaller))
    assert np.isfinite(logits(smaller, small)).all()


@pytest.mark.parametrize(
    ("importance", "sizes", "message"),
    [
        ({}, {"width": 4}, "importance"),
        ({"heads": np.ones(4)}, {"heads": 2}, "sizes"),
        ({"width": np.ones((3, 12))}, {"width": 4}, r"width: expected \[width\], got float64\[3, 12\]"),
        ({"width": np.ones(11)}, {"width": 4}, "expected 11 units, as in importance, width"),
        ({"width": np.ones(12)}, {"width": 13}, "expected 1 to 12, got 13"),
        ({"width": -np.ones(12)}, {"width": 4}, "at least 0"),
        ({"mlp_width": np.ones((3, 10))}, {"mlp_width": 4}, r"\[2 layers, mlp_width\]"),
        ({"mlp_width": np.full((2, 10), np.nan)}, {"mlp_width": 4}, "finite"),
    ],
)
def test_importance_that_does_not_fit(importance, sizes, message):
    with pytest.raises(ValueError, match=message):
        weights.prune_width(initial(decoder()), importance, sizes)


def test_arrays_whose_units_are_unknown_are_refused():
    other = Variables(nnx.to_pure_dict(nnx.state(nnx.Conv(2, 3, (1,), rngs=nnx.Rngs(0)))))
    with pytest.raises(ValueError, match=r"bias float32\[3\]: expected an array of a decoder or encoder"):
        weights.prune_width(other, {"width": np.ones(2)}, {"width": 1})
