"""The packed codec of the k most likely classes: its size, its bounds, and its values in the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.cache import codecs

LOGITS = np.random.default_rng(0).normal(0, 1, (3, 5, 300)).astype(np.float32)


def round_trip(codec, x):
    kept = jax.jit(codec.encode)(jnp.asarray(x))
    return kept, jax.jit(lambda kept: codec.decode(kept, x.shape[1:]))(kept)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)


@pytest.mark.parametrize(("k", "levels", "most"), [(50, 16, 114), (128, 64, 300)])
@pytest.mark.parametrize("classes", [128_000, 128_256, 131_072])
def test_bytes_of_a_token(k, levels, most, classes):
    logits = jax.ShapeDtypeStruct((1, 1, classes), jnp.float32)
    fields = jax.eval_shape(codecs.packed_top_k(k, levels).encode, logits)
    assert sum(x.size * x.dtype.itemsize for x in fields.values()) <= most


@pytest.mark.parametrize(("k", "levels"), [(1, 16), (20, 3), (20, 16), (20, 256), (300, 64)])
@pytest.mark.parametrize("scale", [0.1, 2.0, 6.0])
def test_errors_are_within_the_stated_bounds(k, levels, scale):
    x = scale * LOGITS
    _, found = round_trip(codecs.packed_top_k(k, levels), x)
    found = {name: np.asarray(value, np.float64) for name, value in found.items()}
    log_p = log_softmax(x)
    indices = found["/indices"].astype(int)
    np.testing.assert_array_equal(np.sort(indices), np.sort(np.argsort(-x, axis=-1)[..., :k]))
    true = np.take_along_axis(log_p, indices, -1)
    error = found["/error"]
    width = true.max(-1) - true.min(-1)
    assert (error <= np.maximum(width / (levels - 1) * (1 + 2**-9), 2**-14)).all()
    gap = np.abs(found["/log_probs"] - true)
    assert (gap <= error[..., None] + 1e-5).all()
    if k == 20 and levels == 16:
        assert gap.max() > 0.4 * error.max(), "the bound is not far away"
    tail = 1 - np.exp(true).sum(-1)
    np.testing.assert_allclose(np.exp(found["/log_tail"]), tail, rtol=1e-5, atol=1e-6)
    p = np.concatenate([np.exp(true), np.maximum(tail, 0)[..., None]], -1)
    log_stored = np.concatenate([found["/log_probs"], found["/log_tail"][..., None]], -1)
    np.testing.assert_allclose(np.exp(log_stored).sum(-1), 1, rtol=1e-5)
    if k < 300:
        divergence = (p * (np.log(p) - log_stored)).sum(-1)
        assert (divergence <= error**2 / 8 + 1e-6).all()


def test_the_output_has_all_classes_with_an_even_tail():
    _, found = round_trip(codecs.packed_top_k(20), LOGITS)
    dense = np.asarray(jax.nn.softmax(found[""]))
    np.testing.assert_allclose(
        np.take_along_axis(dense, np.asarray(found["/indices"]), -1), np.exp(found["/log_probs"]), rtol=1e-5
    )
    np.testing.assert_allclose(dense.min(-1), np.exp(found["/log_tail"]) / 280, rtol=1e-4)


def test_the_loss_reads_it():
    """The value differs from that of the exact k classes by a first-order term of the step at most."""
    student = LOGITS[::-1] * 2
    _, found = round_trip(codecs.packed_top_k(40, 256), LOGITS)
    log_probs, indices = jax.lax.top_k(jax.nn.log_softmax(LOGITS), 40)
    expected = losses.top_k_kl(student, log_probs, indices)
    value = losses.top_k_kl(student, found["/log_probs"], found["/indices"])
    np.testing.assert_allclose(value, expected, rtol=1e-2, atol=1e-3)
    assert float(jnp.max(jnp.abs(value - expected))) > 0


def test_excluded_and_negligible_classes_have_probability_0():
    x = np.array([[[3.0, -np.inf, 1.0, -np.inf, -1e9, 2.0]], [[0.0, 0.0, 0.0, 0.0, 0.0, 0.0]]], np.float32)
    kept, found = round_trip(codecs.packed_top_k(5, 3), x)
    probabilities = np.zeros(6)
    probabilities[np.asarray(found["/indices"])[0, 0]] = np.exp(found["/log_probs"])[0, 0]
    assert (probabilities[[1, 3, 4]] == 0).all() and probabilities[0] >= probabilities[5] >= probabilities[2] > 0
    assert kept["step"][0, 0] < 0  # two levels are left for the range of 2
    np.testing.assert_allclose(found["/error"][0, 0], 2, rtol=2**-9)
    np.testing.assert_allclose(np.exp(found["/log_probs"])[1, 0], 1 / 6, rtol=1e-5)
    np.testing.assert_allclose(np.exp(found["/log_tail"])[1, 0], 1 / 6, rtol=1e-5)


def test_storable():
    rows = [[0.0, -jnp.inf], [jnp.nan, 0], [jnp.inf, 0], [-jnp.inf, -jnp.inf]]
    assert codecs.packed_top_k(1).storable(jnp.array(rows)).tolist() == [True, False, False, False]


def test_errors_name_what_was_expected():
    with pytest.raises(ValueError, match=r"packed_top_k: expected at least k = 50 classes, got float32\[2, 9\]"):
        codecs.packed_top_k(50).encode(jnp.zeros((2, 9)))
    with pytest.raises(ValueError, match="expected 3 to 256 levels, got 2"):
        codecs.packed_top_k(50, levels=2)
    with pytest.raises(ValueError, match="packed_top_k: expected k of at least 1, and at most 65536, got 0"):
        codecs.packed_top_k(0)
    with pytest.raises(ValueError, match=r"expected at most 2³¹ / levels = 8388608 classes, got 10000000"):
        jax.eval_shape(codecs.packed_top_k(5, 256).encode, jax.ShapeDtypeStruct((1, 10**7), jnp.float32))
