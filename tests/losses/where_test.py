"""Masking an example is dropping it, for values and gradients, whatever the masked example holds."""

import itertools

import numpy as np

from tests.loss_runs import reference_slope, run
from tests.loss_table import PER_EXAMPLE, each

GARBAGE = (np.nan, np.inf, -np.inf, 1e300)
LABEL_GARBAGE = (-1, 10**6, -(2**31), 2**31 - 1)


def masks(shape):
    """Masks that are True for some, every second, one, all but the first, and all."""
    size = np.prod(shape, dtype=int)
    ordinal = np.arange(size).reshape(shape)
    rng = np.random.default_rng(0)
    return [rng.permutation(ordinal) % 3 > 0, ordinal % 2 == 1, ordinal == size - 1, ordinal > 0, ordinal >= 0]


@each(PER_EXAMPLE)
def test_masking_is_dropping(row):
    for shapes in row.shapes[:2]:
        check_masking(row, row.inputs(shapes, seed=4))


def check_masking(row, arrays):
    for index, where in enumerate(masks(row.result_shape(arrays))):
        rng = np.random.default_rng(100 + index)
        cotangent = rng.normal(size=where.shape)
        expected = row.keep(where, arrays)
        # One direction per argument: an error in one gradient cannot cancel one in another.
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


@each(PER_EXAMPLE)
def test_garbage_in_one_argument(row):
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


@each(PER_EXAMPLE)
def test_empty_mask(row):
    arrays = row.inputs()
    where = np.zeros(row.result_shape(arrays), bool)
    for dtype, garbage in itertools.product((np.float64, np.float32), (0.5, *GARBAGE[:3])):
        value, gradients = run(row, row.spoiled(arrays, where, garbage, -1), where=where, dtype=dtype)
        np.testing.assert_array_equal(value, np.zeros(where.shape))
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, np.zeros(gradient.shape))


@each(PER_EXAMPLE)
def test_full_mask_is_no_mask(row):
    """A mask of ones must not change the scale."""
    arrays = row.inputs()
    value, gradients = run(row, arrays)
    masked, masked_gradients = run(row, arrays, where=np.ones(row.result_shape(arrays), bool))
    np.testing.assert_allclose(masked, value, rtol=1e-12)
    for gradient, expected in zip(masked_gradients, gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-13)


# In a loss that depends on the order, an example has one partner, which need not be the masked one.
@each([row for row in PER_EXAMPLE if row.relational and not row.ordered])
def test_masked_example_is_in_no_relation(row):
    """An example's share changes when another is masked: zeroing the result alone would be wrong."""
    arrays = row.inputs()
    where = np.arange(len(arrays[0])) != 2
    masked = run(row, arrays, where=where)[0][where]
    assert np.abs(masked - run(row, arrays)[0][where]).min() > 1e-4
    np.testing.assert_allclose(masked, run(row, row.batched(arrays, lambda array: array[where]))[0], rtol=1e-9)
