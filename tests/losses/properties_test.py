"""Properties on inputs that Hypothesis draws: zeros, duplicates and empty masks among them."""

import hypothesis
import hypothesis.extra.numpy
import jax
import ml_dtypes
import numpy as np
from hypothesis import strategies

from tests.loss_row import discrete
from tests.loss_runs import cast, run
from tests.loss_table import PER_EXAMPLE, ROWS, each

BOUNDED = hypothesis.settings(
    max_examples=15, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)  # fmt: skip


def drawn_shapes(row):
    """Returns few shapes, to compile each loss a few times; in the second, student and teacher have one shape."""
    return row.drawn or row.shapes[:2]


@strategies.composite
def arguments(draw, row, dtype, sizes=slice(1, 2)):
    """Draws multiples of 1/8 up to ±1000, whose products are exact in float64, so that ties stay ties."""
    arrays = row.inputs(draw(strategies.sampled_from(drawn_shapes(row)[sizes])))
    limit = draw(strategies.sampled_from([8, 64, 8000]))
    drawn = []
    for array in arrays:
        if array.dtype == bool:
            drawn.append(draw(hypothesis.extra.numpy.arrays(bool, array.shape)))
            continue
        labels = discrete(array)
        bounds = (0, arrays[0].shape[-1] - 1) if labels else (-limit, limit)
        integers = draw(hypothesis.extra.numpy.arrays(np.int32, array.shape, elements=strategies.integers(*bounds)))
        drawn.append(integers if labels else (integers / 8).astype(dtype).astype(np.float64))
    drawn = row.valid(tuple(drawn))
    where = draw(hypothesis.extra.numpy.arrays(bool, row.result_shape(drawn))) if row.per_example else None
    return tuple(drawn), where


def expected(row, arrays, where):
    return row.reference(*arrays) if where is None else row.keep(where, arrays)


@each()
def test_drawn_inputs_have_the_formulas_value_and_finite_gradients(row):
    @BOUNDED
    @hypothesis.given(arguments(row, np.float64, sizes=slice(0, 2)))
    def check(drawn):
        arrays, where = drawn
        value, gradients = run(row, arrays, where=where)
        np.testing.assert_allclose(value, expected(row, arrays, where), rtol=1e-8, atol=1e-9)
        for position, gradient in zip(row.floating(arrays), gradients, strict=True):
            assert np.isfinite(gradient).all()
            assert where is None or position in row.shared or row.drop or (gradient[~where] == 0).all()

    check()


@each()
def test_lower_precision(row):
    """Drawn inputs are rounded to the dtype first: half precision is exact input to a float32 computation."""
    check_lower_precision(row, ml_dtypes.bfloat16)
    check_lower_precision(row, np.float32)


def check_lower_precision(row, dtype):
    @BOUNDED
    @hypothesis.given(arguments(row, dtype))
    def check(drawn):
        arrays, where = drawn
        value, gradients = run(row, arrays, where=where, dtype=dtype)
        assert value.dtype == np.float32
        right = expected(row, arrays, where)
        np.testing.assert_allclose(value, right, rtol=1e-3, atol=1e-3 * max(1e-3, np.abs(right).max(initial=0)))
        for gradient in gradients:
            assert gradient.dtype == dtype
            assert np.isfinite(gradient.astype(np.float64)).all()

    check()


@each(PER_EXAMPLE)
def test_masked_garbage_never_leaks(row):
    garbage = strategies.sampled_from([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-40])

    @BOUNDED
    @hypothesis.given(arguments(row, np.float32), garbage, strategies.integers(-(2**31), 2**31 - 1))
    def check(drawn, value, label):
        arrays, where = drawn
        spoiled = row.spoiled(arrays, where, value, label)
        clean, clean_gradients = run(row, arrays, where=where, dtype=np.float32)
        result, gradients = run(row, spoiled, where=where, dtype=np.float32)
        np.testing.assert_array_equal(result, clean)
        for gradient, one in zip(gradients, clean_gradients, strict=True):
            np.testing.assert_array_equal(gradient, one)

    check()


@each([row for row in ROWS if row.identical_is_zero])
def test_equal_student_has_loss_zero_and_no_loss_is_negative(row):
    @BOUNDED
    @hypothesis.given(arguments(row, np.float32))
    def check(drawn):
        arrays, where = drawn
        value, _ = run(row, arrays, where=where, dtype=np.float32)
        assert (value >= -1e-5).all()
        size = max(1.0, np.abs(arrays[0]).max())
        value, (gradient, *_) = run(row, row.perfect(arrays), where=where, dtype=np.float32)
        np.testing.assert_allclose(value, 0, atol=1e-5 * size)
        np.testing.assert_allclose(gradient, 0, atol=1e-5 * size)

    check()


@each()
def test_drawn_shapes_are_valid(row):
    for shapes in drawn_shapes(row):
        arrays = row.inputs(shapes)
        assert jax.eval_shape(row.function, *cast(arrays, np.float32)).shape == row.result_shape(arrays)
