"""Masking is dropping: values and gradients, whatever stands in the examples that do not count."""

import numpy as np
import pytest

from tests.loss_runs import reference_slope, run
from tests.loss_table import PER_EXAMPLE

GARBAGE = (np.nan, np.inf, -np.inf, 1e300)
LABEL_GARBAGE = (-1, 10**6, -(2**31), 2**31 - 1)


def masks(shape):
    """Some, every second, one, all but the first, all."""
    size = np.prod(shape, dtype=int)
    ordinal = np.arange(size).reshape(shape)
    rng = np.random.default_rng(0)
    return [rng.permutation(ordinal) % 3 > 0, ordinal % 2 == 1, ordinal == size - 1, ordinal > 0, ordinal >= 0]


CASES = [
    pytest.param(row, shapes, id=f"{row}-{'-'.join(map(str, shapes))}")
    for row in PER_EXAMPLE
    for shapes in row.shapes[:2]
]


@pytest.mark.parametrize("row, shapes", CASES)
def test_masking_is_dropping(row, shapes):
    arrays = row.inputs(shapes, seed=4)
    for index, where in enumerate(masks(row.result_shape(arrays))):
        rng = np.random.default_rng(100 + index)
        cotangent = rng.normal(size=where.shape)
        expected = row.keep(where, arrays)
        # Of the student alone and of the teacher alone, that neither hides behind the other.
        directions = [
            [rng.normal(size=a.shape) if i == j else None for j, a in enumerate(arrays)] for i in row.floating(arrays)
        ]
        slopes = [reference_slope(row, arrays, along, cotangent, where) for along in directions]
        for garbage, label in zip(GARBAGE, LABEL_GARBAGE, strict=True):
            spoiled = row.spoiled(arrays, where, garbage, label)
            value, gradients = run(row, spoiled, where=where, cotangent=cotangent)
            np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-13)
            assert (value[~where] == 0).all()
            positions = row.floating(arrays)
            for position, gradient, along, slope in zip(positions, gradients, directions, slopes, strict=True):
                if position not in row.shared and not row.drop:
                    leak = f"{garbage} leaks into the gradient of {row.parameters[position]}"
                    assert (gradient[~where] == 0).all(), leak
                np.testing.assert_allclose((gradient * along[position]).sum(), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("row", PER_EXAMPLE, ids=str)
def test_garbage_in_one_network_alone(row):
    arrays = row.inputs()
    where = masks(row.result_shape(arrays))[0]
    expected, expected_gradients = run(row, arrays, where=where)
    for position in range(len(arrays)):
        for garbage, label in zip(GARBAGE, LABEL_GARBAGE, strict=True):
            spoiled = row.spoiled(arrays, where, garbage, label)
            one = (*arrays[:position], spoiled[position], *arrays[position + 1 :])
            value, gradients = run(row, one, where=where)
            np.testing.assert_array_equal(value, expected)
            for gradient, clean in zip(gradients, expected_gradients, strict=True):
                np.testing.assert_array_equal(gradient, clean)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("row", PER_EXAMPLE, ids=str)
def test_nothing_counts(row, dtype):
    arrays = row.inputs()
    where = np.zeros(row.result_shape(arrays), bool)
    for garbage in (0.5, *GARBAGE[:3]):
        value, gradients = run(row, row.spoiled(arrays, where, garbage, -1), where=where, dtype=dtype)
        np.testing.assert_array_equal(value, np.zeros(where.shape))
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


@pytest.mark.parametrize("row", PER_EXAMPLE, ids=str)
def test_where_all_is_no_where(row):
    """A mask of ones must not change the scale."""
    arrays = row.inputs()
    value, gradients = run(row, arrays)
    masked, masked_gradients = run(row, arrays, where=np.ones(row.result_shape(arrays), bool))
    np.testing.assert_allclose(masked, value, rtol=1e-12)
    for gradient, expected in zip(masked_gradients, gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-13)


# Where the order counts, an example has one partner, which need not be the one that is masked.
@pytest.mark.parametrize("row", [row for row in PER_EXAMPLE if row.relational and not row.ordered], ids=str)
def test_a_masked_example_is_no_partner(row):
    """The share of an example changes when a partner is masked: zeroing the result would not do."""
    arrays = row.inputs()
    where = np.arange(len(arrays[0])) != 2
    masked = run(row, arrays, where=where)[0][where]
    assert np.abs(masked - run(row, arrays)[0][where]).min() > 1e-4
    np.testing.assert_allclose(masked, run(row, row.batched(arrays, lambda array: array[where]))[0], rtol=1e-9)
