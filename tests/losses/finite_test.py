"""Values and gradients are finite at inputs where a careless derivative is NaN or infinite."""

import numpy as np

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
