"""Quantization: exact values in any program, straight-through gradients, learned points, errors."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Variables, adapters
from jaxkd.wrappers import init_codebook, learned_codebook, quantize, quantize_with, quantized
from tests import tiny

KEY = jax.random.key(0)


def weights(*shape, seed=0, scale=1.0):
    return np.float32(scale) * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def buckets(w, bucket):
    flat = np.asarray(w, np.float64).reshape(-1)
    return [flat[i : i + (bucket or len(flat))] for i in range(0, len(flat), bucket or len(flat))]


def reference(w, bits, bucket):
    """Section 2 of the paper in float64: values, and the distance of each weight from a rounding boundary."""
    values, margins, s = [], [], 2**bits - 1
    for x in buckets(w, bucket):
        low, width = x.min(), x.max() - x.min()
        u = (x - low) / (width or 1) * s
        values.append(low + width * np.round(u) / s)
        margins.append(np.abs(np.abs(u - np.floor(u)) - 0.5))
    return np.concatenate(values).reshape(w.shape), np.concatenate(margins).reshape(w.shape)


@pytest.mark.parametrize("bits, bucket", [*itertools.product([1, 2, 4, 8], [256, 7]), (3, None), (5, 1000)])
def test_values_equal_the_formula(bits, bucket):
    w = weights(3, 3, 5, 13, scale=0.1)
    expected, margin = reference(w, bits, bucket)
    found = np.asarray(quantize(w, bits=bits, bucket=bucket))
    sure = margin > 1e-4
    assert sure.mean() > 0.99
    np.testing.assert_allclose(found[sure], expected[sure], rtol=1e-5, atol=1e-7)
    for q, x in zip(buckets(found, bucket), buckets(w, bucket), strict=True):
        assert len(np.unique(q)) <= 2**bits
        np.testing.assert_allclose([q.min(), q.max()], [x.min(), x.max()], rtol=1e-6)
        assert np.abs(q - x).max() <= 0.5001 * (x.max() - x.min()) / (2**bits - 1)


def test_values_computed_by_hand():
    """Two buckets, [−1, 2] and a shorter [0, 4], with steps of 1 and 4/3."""
    w = jnp.array([[-1.0, -0.6, 1.4, 2.0], [0.0, 3.0, 4.0, 1.9]])[:, :4].reshape(1, 8)[:, :7]
    found = quantize(w, bits=2, bucket=4)
    np.testing.assert_allclose(found, [[-1, -1, 1, 2, 0, 8 / 3, 4]], rtol=1e-6)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_all_programs_agree_bit_for_bit(bits):
    """A compiler that fused the product and the sum would round once instead of twice."""
    w = weights(64, 48, seed=1)
    points = init_codebook({"w": w}, bits=bits, bucket=100)
    alone = quantize(w, bits=bits), quantize_with({"w": w}, points, bucket=100)["w"]
    jitted = jax.jit(lambda w, p: (quantize(w, bits=bits), quantize_with({"w": w}, p, bucket=100)["w"]))(w, points)
    within = jax.jit(lambda w, p: jax.vmap(
        lambda x: (jnp.eye(64) @ quantize(x, bits=bits), jnp.eye(64) @ quantize_with({"w": x}, p, bucket=100)["w"])
    )(w[None]))(w, points)  # fmt: skip
    tiny.assert_equal(jitted, alone)
    tiny.assert_equal(jax.tree.map(lambda x: x[0], within), alone)


def test_buckets_follow_row_major_order():
    w = weights(6, 4)
    for i, row in enumerate(np.asarray(quantize(w, bits=2, bucket=4))):
        np.testing.assert_array_equal(row, quantize(w[i : i + 1], bits=2, bucket=4)[0])


@pytest.mark.slow
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_degenerate_buckets_stay_finite(bits):
    constant = jnp.full((3, 5), 0.3)
    np.testing.assert_array_equal(quantize(constant, bits=bits, bucket=4), constant)
    np.testing.assert_array_equal(quantize(jnp.zeros((3, 5)), bits=bits), 0)
    for w in (jnp.array([[1e-42, -1e-42, 0.0]]), jnp.array([[3.4e38, -3.4e38, 0.0]]), jnp.array([[1e4, 1e-4, -1e4]])):
        q = quantize(w, bits=bits)
        assert jnp.isfinite(q).all()
        p = quantize_with({"w": w}, init_codebook({"w": w}, bits=bits))["w"]
        assert jnp.isfinite(p).all()
    assert quantize(jnp.ones((1, 1)), bits=bits).tolist() == [[1.0]]
    # An outlier affects its own bucket alone.
    w = weights(1, 8)
    with_outlier = np.concatenate([w, np.float32([[1e6] + [0] * 7])])
    np.testing.assert_array_equal(quantize(with_outlier, bits=bits, bucket=8)[0], quantize(w, bits=bits, bucket=8)[0])


def test_bfloat16_equals_the_rounded_float32_result():
    w = jnp.asarray(weights(8, 8), jnp.bfloat16)
    q = quantize(w, bits=3, bucket=16)
    assert q.dtype == jnp.bfloat16
    np.testing.assert_array_equal(q, quantize(w.astype(jnp.float32), bits=3, bucket=16).astype(jnp.bfloat16))


def test_include_selects_tensors():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            x = nn.BatchNorm(use_running_average=not train)(nn.Conv(3, (2, 2))(x))
            return nn.Dense(2)(x.mean(axis=(1, 2)))

    model, batch = adapters.linen(Net()), tiny.batch(2)
    params = jax.tree.map(lambda x: x + weights(*x.shape), model.init(KEY, batch).params)

    def changed(include):
        same = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b)), params, quantize(params, bits=1, include=include))
        return {name for name, leaf in tiny_paths(same).items() if not leaf}

    assert changed(None) == {"Conv_0/kernel", "Dense_0/kernel"}
    assert changed("^Dense") == {"Dense_0/kernel"}  # a bias of two values is its own range, so unchanged
    assert changed("bias|scale") == {"Conv_0/bias", "BatchNorm_0/bias", "BatchNorm_0/scale"}
    assert changed(lambda path, x: x.ndim == 4) == {"Conv_0/kernel"}
    integers = {"kernel": jnp.ones((2, 2)), "table": jnp.arange(4).reshape(2, 2)}
    assert quantize(integers)["table"] is integers["table"]


def tiny_paths(tree):
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def test_the_gradient_is_taken_at_the_quantized_weights():
    model, batch = quantized(tiny.student, bits=2, bucket=8), tiny.batch(4)
    variables = model.init(KEY, batch)
    tiny.assert_equal(variables, tiny.student.init(KEY, batch))

    def loss(model, params):
        logits = model.apply(Variables(params), batch, key=None, train=True)[0]["logits"]
        return jnp.sum(jnp.sin(3 * logits))

    inner = quantize(variables.params, bits=2, bucket=8)
    value, gradient = jax.value_and_grad(lambda p: loss(model, p))(variables.params)
    expected, straight = jax.value_and_grad(lambda p: loss(tiny.student, p))(inner)
    assert value == expected
    tiny.assert_equal(gradient, straight)
    assert abs(loss(tiny.student, variables.params) - value) > 1e-2
    _, tangent = jax.jvp(lambda p: quantize(p, bits=2), (variables.params,), (inner,))
    tiny.assert_equal(tangent, inner)


def test_eight_bits_are_close_to_the_model():
    batch = tiny.batch(4)
    variables = tiny.student.init(KEY, batch)
    plain, found = (
        m.apply(variables, batch, key=None, train=False)[0]["logits"]
        for m in (tiny.student, quantized(tiny.student, bits=8))
    )
    np.testing.assert_allclose(found, plain, atol=5e-3)
    assert (found != plain).any()


def test_random_rounding_is_unbiased():
    w = weights(4, 8)
    draws = jax.vmap(lambda k: quantize(w, bits=2, bucket=16, key=k))(jax.random.split(KEY, 4000))
    width = np.repeat([x.max() - x.min() for x in buckets(w, 16)], 16).reshape(w.shape)
    draws, deviation = np.asarray(draws), 0.5 * width / 3 / np.sqrt(4000)
    np.testing.assert_array_less(np.abs(draws.mean(axis=0) - w), 4.5 * deviation + 1e-6)
    assert (np.abs(draws - w) <= 1.001 * width / 3).all()
    two = quantize({"a": w, "b": w}, bits=2, bucket=16, key=KEY)
    assert (two["a"] != two["b"]).any()


def test_random_rounding_depends_on_the_step_and_is_off_in_evaluation():
    model, nearest = (quantized(tiny.student, bits=2, seed=seed) for seed in (3, None))
    batch = tiny.batch(4)
    variables = model.init(KEY, batch)

    def logits(model, step, train):
        return model.apply(variables, {**batch, "step": jnp.int32(step)}, key=KEY, train=train)[0]["logits"]

    assert (logits(model, 0, True) != logits(model, 1, True)).any()
    tiny.assert_equal(logits(model, 1, True), logits(model, 1, True))
    tiny.assert_equal(logits(model, 1, False), logits(nearest, 1, True))


# --- learned points ---------------------------------------------------------------------------------------------------


def test_initial_points_are_quantiles():
    w = weights(5, 7)
    found = init_codebook({"a": [w]}, bits=3, bucket=16)["a"]["0"]
    u = np.concatenate([(x - x.min()) / (x.max() - x.min()) for x in buckets(w, 16)])
    np.testing.assert_allclose(found, np.percentile(u, np.linspace(0, 100, 8)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("number", [2, 4, 11])
def test_each_weight_is_assigned_its_nearest_point(number):
    """Points in any order; the gradient of a point sums those of its weights times their scales, in float64."""
    w, g = weights(9, 7, seed=3), weights(9, 7, seed=4)
    points = np.random.default_rng(5).permutation(np.linspace(-0.1, 1.05, number)).astype(np.float32)
    values, gradient = [], np.zeros(number)
    for x, y in zip(buckets(w, 16), buckets(g, 16), strict=True):
        low, width = x.min(), x.max() - x.min()
        nearest = np.abs((x - low)[:, None] / width - points[None]).argmin(axis=1)
        values.append(low + width * points[nearest])
        np.add.at(gradient, nearest, width * y)

    def loss(p):
        q = quantize_with({"w": w}, {"w": p}, bucket=16)["w"]
        return jnp.sum(g * q), q

    found, q = jax.jit(jax.grad(loss, has_aux=True))(points)
    np.testing.assert_allclose(q, np.concatenate(values).reshape(w.shape), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found, gradient, rtol=1e-4, atol=1e-5)


def test_equidistant_points_equal_uniform_quantization():
    w = weights(16, 16)
    found = quantize_with({"w": w}, {"w": jnp.linspace(0, 1, 16)}, bucket=64)["w"]
    np.testing.assert_allclose(found, quantize(w, bits=4, bucket=64), rtol=1e-5, atol=1e-6)


def test_learned_points_are_a_model():
    batch, base = tiny.batch(4), tiny.student.init(KEY, tiny.batch(4))
    model = learned_codebook(tiny.student, base, bits=2, bucket=8, include="second")
    variables = model.init(jax.random.key(9), batch)
    assert jax.tree.map(jnp.shape, variables.params) == {"second": (4,)}
    outputs, state = model.apply(variables, batch, key=None, train=True)
    tiny.assert_equal(state, variables.state)
    dense = quantize_with(base.params, variables.params, bucket=8)
    tiny.assert_equal(dense["first"], base.params["first"])
    tiny.assert_equal(outputs, tiny.student.apply(Variables(dense), batch, key=None, train=True)[0])
    # With one point for each distinct value, nothing is rounded.
    few = jnp.array([[0.0, 0.25, 1.0, 0.25]])
    np.testing.assert_array_equal(quantize_with({"w": few}, {"w": jnp.unique(few)})["w"], few)


def test_learned_points_keep_the_models_state_and_dtypes():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            return nn.BatchNorm(use_running_average=not train)(nn.Dense(3, param_dtype=jnp.bfloat16)(x)).mean(
                axis=(1, 2)
            )

    inner, batch = adapters.linen(Net()), tiny.batch(4)
    base = inner.init(KEY, batch)
    model = learned_codebook(inner, {"params": base.params, **base.state}, bits=1)
    variables = model.init(KEY, batch)
    assert set(tiny_paths(variables.params)) == {"Dense_0/kernel"}
    state = model.apply(variables, batch, key=None, train=True)[1]
    tiny.assert_equal(state["weights"], variables.state["weights"])
    dense = Variables(quantize_with(base.params, variables.params), base.state)
    assert dense.params["Dense_0"]["kernel"].dtype == jnp.bfloat16
    tiny.assert_equal(state["model"], inner.apply(dense, batch, key=None, train=True)[1])
    assert (state["model"]["batch_stats"]["BatchNorm_0"]["mean"] != 0).any()


def test_mistakes_raise_errors_that_teach():
    w = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    for bits in (0, 9, 32, 4.0, True):
        with pytest.raises(ValueError, match=r"bits: expected a whole number from 1 to 8, got"):
            quantized(tiny.student, bits=bits)
    with pytest.raises(ValueError, match="32 bits need no wrapper"):
        quantize(w, bits=32)
    with pytest.raises(ValueError, match=r"bucket: expected at least 2 weights, or None.*got 1"):
        learned_codebook(tiny.student, Variables(w), bucket=1)
    with pytest.raises(ValueError, match=r"include='kernal' is true of, got none.*'kernel' float32\[2, 2\]"):
        quantize(w, include="kernal")
    with pytest.raises(ValueError, match=r"quantized: expected.*'first' float32\[2, 4\]"):
        quantized(tiny.student, include="x").init(KEY, tiny.batch(2))
    with pytest.raises(ValueError, match="that has two or more axes, got none"):
        quantize({"bias": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match=r"tensor 'kernal'.*did you mean 'kernel'"):
        quantize_with(w, {"kernal": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"points of 'kernel': expected \[2 to 256\], got float32\[1\]"):
        quantize_with(w, {"kernel": jnp.ones(1)})
