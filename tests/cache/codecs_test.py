"""Codecs: error bounds, exact values, and rejected inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.cache import codecs

LOGITS = np.random.default_rng(0).normal(0, 5, (9, 40)).astype(np.float32)


def round_trip(codec, x):
    kept = jax.jit(codec.encode)(jnp.asarray(x))
    assert all(value.shape[0] == len(x) for value in kept.values())
    return kept, jax.jit(lambda kept: codec.decode(kept, x.shape[1:]))(kept)


@pytest.mark.parametrize(("dtype", "relative"), [("float16", 2**-11), ("bfloat16", 2**-8), ("float32", 0)])
def test_full_error_is_at_most_half_a_unit_in_the_last_place(dtype, relative):
    kept, found = round_trip(codecs.full(dtype), LOGITS)
    assert kept["values"].dtype == dtype and found[""].dtype == jnp.float32
    assert (np.abs(found[""] - LOGITS) <= relative * np.abs(LOGITS)).all()
    assert relative == 0 or (found[""] != LOGITS).any()


def test_full_preserves_excluded_classes_and_does_not_overflow():
    extreme = np.array([[-np.inf, 1e9, -1e9, 65519.0, 3.0]], np.float32)
    np.testing.assert_array_equal(
        round_trip(codecs.full("float16"), extreme)[1][""], [[-np.inf, 65504, -65504, 65504, 3]]
    )
    valid = codecs.full().storable(jnp.array([[0.0, -jnp.inf], [jnp.nan, 0], [jnp.inf, 0]]))
    assert valid.tolist() == [True, False, False]


@pytest.mark.parametrize("shape", [(9, 40), (3, 2, 2, 30)])
def test_eight_bit_error_is_at_most_half_a_step_of_the_row(shape):
    x = LOGITS.reshape(-1)[: np.prod(shape)].reshape(shape)
    kept, found = round_trip(codecs.eight_bit(), x)
    bound = (x.max(-1) - x.min(-1)) / 510
    gap = np.abs(found[""] - x).max(-1)
    assert (gap <= bound * (1 + 1e-4)).all() and (gap > 0.8 * bound).any()
    assert kept["values"].dtype == jnp.uint8 and kept["scale"].shape == shape[:-1]


def test_eight_bit_is_exact_on_constant_rows_and_rejects_infinity():
    np.testing.assert_array_equal(
        round_trip(codecs.eight_bit(), np.full((2, 5), 3.3, np.float32))[1][""], np.float32(3.3)
    )
    assert codecs.eight_bit().storable(jnp.array([[0.0, 1], [0, -jnp.inf]])).tolist() == [True, False]


@pytest.mark.parametrize("k", [1, 5, 40])
def test_top_k_is_exact_at_temperature_one(k):
    kept, found = round_trip(codecs.top_k(k, "float32"), LOGITS)
    p = np.exp(LOGITS.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    order = np.argsort(-LOGITS, axis=-1)
    np.testing.assert_array_equal(found["/indices"], order[:, :k])
    np.testing.assert_allclose(np.exp(found["/log_probs"]), np.take_along_axis(p, order[:, :k], -1), rtol=1e-5)
    tail = np.take_along_axis(p, order[:, k:], -1).sum(-1)
    np.testing.assert_allclose(np.exp(found["/log_tail"]), tail, rtol=1e-5)
    np.testing.assert_allclose(np.exp(found["/log_probs"]).sum(-1) + np.exp(found["/log_tail"]), 1, rtol=1e-5)
    dense = jax.nn.softmax(found[""])
    np.testing.assert_allclose(np.take_along_axis(dense, order[:, :k], -1), np.exp(found["/log_probs"]), rtol=1e-5)
    spread = np.tile(tail[:, None] / max(40 - k, 1), 40 - k)
    np.testing.assert_allclose(np.take_along_axis(dense, order[:, k:], -1), spread, rtol=1e-4)
    assert kept["indices"].dtype == jnp.uint8


def test_top_k_at_another_temperature_preserves_ratios_of_stored_classes():
    dense = round_trip(codecs.top_k(6, "float32"), LOGITS)[1][""]
    top = np.argsort(-LOGITS, axis=-1)[:, :6]
    soft, true = (np.take_along_axis(np.asarray(jax.nn.log_softmax(x / 4)), top, -1) for x in (dense, LOGITS))
    np.testing.assert_allclose(soft - soft[:, :1], true - true[:, :1], rtol=1e-4, atol=1e-5)


def test_top_k_outputs_are_arguments_of_the_top_k_loss():
    found = round_trip(codecs.top_k(6), LOGITS)[1]
    student = LOGITS[::-1].copy()
    log_probs, indices = jax.lax.top_k(jax.nn.log_softmax(LOGITS), 6)
    top_k_kl = jax.jit(losses.top_k_kl)
    expected = top_k_kl(student, log_probs, indices)
    np.testing.assert_allclose(
        top_k_kl(student, found["/log_probs"], found["/indices"]), expected, rtol=5e-3, atol=1e-5
    )
    whole = round_trip(codecs.top_k(40, "float32"), LOGITS)[1]
    every = top_k_kl(student, whole["/log_probs"], whole["/indices"])
    kl = jax.jit(lambda student: losses.soft_target_kl(student, LOGITS, temperature=1.0))(student)
    np.testing.assert_allclose(every, kl, rtol=1e-5, atol=1e-6)


def test_top_k_with_excluded_classes_and_smallest_index_dtype():
    excluded = np.array([[2.0, -np.inf, -np.inf, 1.0]], np.float32)
    found = round_trip(codecs.top_k(2), excluded)[1]
    np.testing.assert_array_equal(found[""], excluded)
    assert np.exp(found["/log_tail"]) == 0
    for classes, dtype in ((256, "uint8"), (257, "uint16"), (70_000, "uint32")):
        kept = jax.eval_shape(codecs.top_k(3).encode, jax.ShapeDtypeStruct((1, classes), jnp.float32))
        assert kept["indices"].dtype == dtype


def test_errors_name_what_was_expected():
    with pytest.raises(ValueError, match=r"top_k: expected at least k = 50 classes, got float32\[9, 40\]"):
        codecs.top_k(50).encode(jnp.asarray(LOGITS))
    with pytest.raises(ValueError, match="expected a dtype of float16, bfloat16, float32, got 'int8'"):
        codecs.full("int8")
    with pytest.raises(ValueError, match=r"eight_bit: expected \[batch, ..., features\], got float32\[9\]"):
        codecs.eight_bit().encode(jnp.zeros(9))
    with pytest.raises(ValueError, match="k of at least 1"):
        codecs.top_k(0)
    with pytest.raises(ValueError, match=r"one of the codecs .* of this version of jaxkd, got 'gzip'"):
        codecs.from_settings({"codec": "gzip"})
