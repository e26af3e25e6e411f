"""Every loss has the value, the gradient, the shape and the dtype of its formula."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests.loss_row import discrete, golden, golden_file
from tests.loss_runs import cast, reference_gradients, run
from tests.loss_table import ROWS, each


@each()
def test_values_and_gradients_in_float64(row):
    check_float64(row, row.shapes[0], row.hyper[0])


@pytest.mark.slow
@each([row for row in ROWS if len(row.shapes) + len(row.hyper) > 2])
def test_values_and_gradients_of_other_shapes_and_hyperparameters(row):
    for shapes in row.shapes[1:]:
        check_float64(row, shapes, row.hyper[0])
    for hyper in row.hyper[1:]:
        check_float64(row, row.shapes[0], hyper)


def check_float64(row, shapes, hyper):
    for seed, scale in enumerate((1e-2, 1.0, 30.0)):
        arrays = row.inputs(shapes, seed, scale)
        cotangent = np.random.default_rng(100 + seed).normal(size=row.result_shape(arrays))
        value, gradients = run(row, arrays, cotangent=cotangent, hyper=hyper)
        assert value.shape == row.result_shape(arrays)
        assert value.dtype == np.float64
        case = f"{shapes}, {dict(hyper)}, scale {scale}"
        np.testing.assert_allclose(value, row.reference(*arrays, **hyper), rtol=1e-9, atol=1e-13, err_msg=case)
        if scale == 1.0:
            assert len(gradients) == len(row.floating(arrays))
            for gradient, expected in zip(gradients, reference_gradients(row, arrays, cotangent, hyper), strict=True):
                np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8, err_msg=case)


@each()
def test_values_and_gradients_in_float32(row):
    for hyper, (seed, scale) in itertools.product(row.hyper, enumerate((1e-2, 1.0, 30.0))):
        case = f"{dict(hyper)}, scale {scale}"
        arrays = tuple(np.asarray(array) for array in cast(row.inputs(None, seed, scale), np.float32))
        cotangent = np.random.default_rng(100 + seed).normal(size=row.result_shape(arrays))
        value, gradients = run(row, arrays, cotangent=cotangent, hyper=hyper, dtype=np.float32, optimized=True)
        exact, exact_gradients = run(row, arrays, cotangent=cotangent, hyper=hyper)
        np.testing.assert_allclose(value, exact, rtol=1e-4, atol=row.rounding, err_msg=case)
        for gradient, expected in zip(gradients, exact_gradients, strict=True):
            rounding = 1e-4 * np.abs(expected).max() + row.rounding
            np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=rounding, err_msg=case)


@each([row for row in ROWS if row.golden])
def test_golden_values_and_gradients(row):
    for case in row.golden:
        check_golden(row, case)


def check_golden(row, case):
    hyper = {name: value.item() for name, value in golden(case, "arg").items()}
    expected = golden(case, "grad")
    positions = [list(golden(case, "in")).index(name) for name in expected]
    with jax.enable_x64(True):
        arrays = cast(golden(case, "in").values(), np.float64)
        value_and_gradient = jax.value_and_grad(lambda *a: row.golden[case](losses)(*a, **hyper).mean(), positions)
        value, gradients = jax.jit(value_and_gradient)(*arrays)
    np.testing.assert_allclose(value, golden_file()[f"{case}/value"], rtol=1e-9, err_msg=case)
    for gradient, right in zip(gradients, expected.values(), strict=True):
        np.testing.assert_allclose(gradient, right, rtol=1e-9, atol=1e-9 * np.abs(right).max(), err_msg=case)


@each([row for row in ROWS if row.hand])
def test_values_derived_by_hand(row):
    for index, hand in enumerate(row.hand):
        case = f"hand value {index}"
        value, gradients = run(row, hand.arguments, hyper=hand.hyper)
        np.testing.assert_allclose(value, hand.value, rtol=1e-9, atol=1e-12, err_msg=case)
        if hand.gradient is not None:
            np.testing.assert_allclose(gradients[0], hand.gradient, rtol=1e-9, atol=1e-12, err_msg=case)


@each()
def test_half_precision_is_float32_of_the_upcast_input(row):
    half = [np.asarray(array) for array in cast(row.inputs(), jnp.bfloat16)]
    upcast = [array if discrete(array) else array.astype(np.float32) for array in half]
    value, gradients = run(row, half, dtype=jnp.bfloat16)
    single, single_gradients = run(row, upcast, dtype=np.float32)
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, single, rtol=1e-6, atol=1e-8)
    for gradient, expected in zip(gradients, single_gradients, strict=True):
        assert gradient.dtype == jnp.bfloat16
        # One rounding, at the end: a computation in half precision has many.
        np.testing.assert_allclose(gradient.astype(np.float32), expected, rtol=2**-8, atol=1e-8)


@each()
def test_result_dtypes(row):
    with jax.enable_x64(True):
        for dtype, expected in (
            (jnp.bfloat16, jnp.float32),
            (jnp.float16, jnp.float32),
            (jnp.float32, jnp.float32),
            (jnp.float64, jnp.float64),
        ):
            result = jax.eval_shape(row.function, *cast(row.inputs(), dtype))
            assert (result.shape, result.dtype) == (row.result_shape(row.inputs()), expected)


@each([row for row in ROWS if row.identical_is_zero])
def test_half_precision_student_and_float32_teacher(row):
    """Both inputs are exact, and the result has the wider dtype."""
    student, *rest = cast(row.inputs(), jnp.float32)
    half = student.astype(jnp.bfloat16)
    result = jax.jit(row.function)(half, *rest)
    assert result.dtype == jnp.float32
    expected, _ = run(row, (half.astype(jnp.float32), *rest), dtype=np.float32)
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-8)
