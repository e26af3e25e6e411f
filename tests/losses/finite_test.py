"""Values and gradients are finite at inputs where a careless derivative is NaN or infinite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests.loss_runs import run
from tests.loss_table import PER_EXAMPLE, each


def check_extreme(row, name, dtype, hyper):
    arrays = row.extremes[name]
    case = f"{name}, {np.dtype(dtype).name}, {dict(hyper)}"
    value, gradients = run(row, arrays, dtype=dtype, hyper=hyper, optimized=dtype == np.float32)
    for gradient in gradients:
        assert np.isfinite(gradient).all(), f"{case}: {gradient}"
    if name.startswith("vanishing"):  # below what squares can represent, the formula has no digits to compare
        assert np.isfinite(value).all(), f"{case}: {value}"
        return
    expected = row.reference(*arrays, **hyper)
    np.testing.assert_array_equal(np.isfinite(value), np.isfinite(expected), err_msg=case)
    finite = np.isfinite(expected)
    largest = np.abs(expected[finite]).max(initial=0)
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if dtype == np.float64 else {"rtol": 2e-4, "atol": 2e-6 * (1 + largest)}
    np.testing.assert_allclose(value[finite], expected[finite], **tolerance, err_msg=case)
    np.testing.assert_array_equal(value[~finite], expected[~finite], err_msg=case)


@each()
def test_extremes_have_the_formulas_value_and_finite_gradients(row):
    for dtype in (np.float64, np.float32):
        for name in row.extremes:
            for hyper in row.hyper:
                check_extreme(row, name, dtype, hyper)


@each()
def test_batch_of_one(row):
    arrays = row.batched(row.inputs(), lambda array: array[:1])
    value, gradients = run(row, arrays)
    np.testing.assert_allclose(value, row.reference(*arrays), rtol=1e-4, atol=1e-6)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        if row.relational and row.needs_others:  # there is no other example to relate to
            np.testing.assert_array_equal(gradient, 0)


@each(PER_EXAMPLE)
def test_mask_with_one_example(row):
    arrays = row.inputs()
    where = np.zeros(row.result_shape(arrays), bool)
    where[2] = True
    value, gradients = run(row, row.spoiled(arrays, where, 7.0, 7), where=where, dtype=np.float32)
    np.testing.assert_allclose(value, row.keep(where, arrays), rtol=1e-4, atol=1e-6)
    for position, gradient in zip(row.floating(arrays), gradients, strict=True):
        assert np.isfinite(gradient).all()
        assert position in row.shared or (np.delete(gradient, 2, axis=0) == 0).all()


@each()
def test_empty_batch(row):
    """A device's shard may be empty; the shapes still have to be right."""
    arrays = row.batched(row.inputs(), lambda array: array[:0])
    value, gradients = run(row, arrays)
    assert value.shape == row.result_shape(arrays)
    for position, gradient in zip(row.floating(arrays), gradients, strict=True):
        assert gradient.shape == arrays[position].shape
        assert (gradient == 0).all()


ZEROS = jnp.zeros(4, jnp.int32)
HALVES = {
    "soft_target_kl": (losses.soft_target_kl, (4, 3)),
    "logit_mse": (losses.logit_mse, (4, 3)),
    "binary_kl": (losses.binary_kl, (4, 3)),
    "hint_mse": (losses.hint_mse, (4, 2, 2, 3)),
    "attention_transfer": (losses.attention_transfer, (4, 2, 2, 3)),
    "distance_relation": (losses.distance_relation, (4, 3)),
    "best_logits": (lambda s, t: losses.logit_mse(s, losses.best_logits(jnp.stack((s, t)), ZEROS)), (4, 3)),
}


@pytest.mark.parametrize("name", HALVES)
def test_gradients_beyond_the_range_of_float16_are_clipped(name):
    """Such as those of a loss that is scaled for training in float16; the gradient of float32 is finite."""
    loss, shape = HALVES[name]
    student, teacher = (x.astype(np.float16) for x in np.random.default_rng(0).normal(size=(2, *shape)))

    def gradients(scale, *arrays):
        return jax.grad(lambda *a: jnp.sum(loss(*a)) * scale, argnums=(0, 1))(*arrays)

    wide = gradients(1e9, *(jnp.asarray(x, jnp.float32) for x in (student, teacher)))
    assert max(np.abs(x).max() for x in wide) > 65504
    for found, expected in zip(gradients(1e9, student, teacher), wide, strict=True):
        assert found.dtype == jnp.float16
        np.testing.assert_allclose(np.float32(found), np.clip(expected, -65504, 65504), rtol=2e-3)


def test_an_infinite_cotangent_of_float16_stays_infinite():
    x = jnp.ones((1, 2), jnp.float16)
    found = jax.grad(lambda x: jnp.sum(losses.logit_mse(x, jnp.zeros_like(x))) * jnp.inf)(x)
    assert np.isinf(found).all()
