"""Nothing becomes NaN: values and gradients at the inputs where a careless derivative does."""

import numpy as np
import pytest

from tests.loss_runs import run
from tests.loss_table import PER_EXAMPLE, ROWS

EXTREMES = [pytest.param(row, name, id=f"{row}-{name}") for row in ROWS for name in row.extremes]


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("row, name", EXTREMES)
def test_extremes_have_the_value_of_the_formula_and_finite_gradients(row, name, dtype):
    arrays = row.extremes[name]
    for hyper in row.hyper:
        value, gradients = run(row, arrays, dtype=dtype, hyper=hyper, optimized=dtype == np.float32)
        for gradient in gradients:
            assert np.isfinite(gradient).all(), f"{hyper}: {gradient}"
        if name.startswith("vanishing"):  # below what squares can represent, the formula has no digits to compare
            assert np.isfinite(value).all(), f"{hyper}: {value}"
            continue
        expected = row.reference(*arrays, **hyper)
        np.testing.assert_array_equal(np.isfinite(value), np.isfinite(expected))
        finite = np.isfinite(expected)
        largest = np.abs(expected[finite]).max(initial=0)
        tolerance = (
            {"rtol": 1e-9, "atol": 1e-11} if dtype == np.float64 else {"rtol": 2e-4, "atol": 2e-6 * (1 + largest)}
        )
        np.testing.assert_allclose(value[finite], expected[finite], **tolerance)
        np.testing.assert_array_equal(value[~finite], expected[~finite])


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_batch_of_one(row):
    arrays = row.batched(row.inputs(), lambda array: array[:1])
    value, gradients = run(row, arrays)
    np.testing.assert_allclose(value, row.reference(*arrays), rtol=1e-4, atol=1e-6)
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        if row.relational and row.needs_others:  # nothing to relate to
            np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("row", PER_EXAMPLE, ids=str)
def test_one_example_left_by_the_mask(row):
    arrays = row.inputs()
    where = np.zeros(row.result_shape(arrays), bool)
    where[2] = True
    value, gradients = run(row, row.spoiled(arrays, where, 7.0, 7), where=where, dtype=np.float32)
    np.testing.assert_allclose(value, row.keep(where, arrays), rtol=1e-4, atol=1e-6)
    for position, gradient in zip(row.floating(arrays), gradients, strict=True):
        assert np.isfinite(gradient).all()
        assert position in row.shared or (np.delete(gradient, 2, axis=0) == 0).all()


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_an_empty_batch(row):
    """A shard may have nothing at all; its shape still has to be right."""
    arrays = row.batched(row.inputs(), lambda array: array[:0])
    value, gradients = run(row, arrays)
    assert value.shape == row.result_shape(arrays)
    for position, gradient in zip(row.floating(arrays), gradients, strict=True):
        assert gradient.shape == arrays[position].shape
        assert (gradient == 0).all()
