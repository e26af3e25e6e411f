"""Invariances: constants, permutations, rotations, the order of the examples, a student equal to its teacher."""

import itertools

import numpy as np

from tests.loss_runs import run
from tests.loss_table import ROWS, each

COMPARING = [row for row in ROWS if row.identical_is_zero]


@each([row for row in ROWS if row.invariances])
def test_invariance(row):
    arrays = row.inputs()
    value = run(row, arrays)[0]
    assert np.abs(value).max() > 1e-4, "a loss of zero is invariant to everything"
    for name, seed in itertools.product(row.invariances, range(3)):
        changed = row.invariances[name](np.random.default_rng(seed), arrays)
        assert any((before != after).any() for before, after in zip(arrays, changed, strict=True)), name
        np.testing.assert_allclose(run(row, changed)[0], value, rtol=1e-8, atol=1e-12, err_msg=name)


@each([row for row in ROWS if row.mapped])
def test_equivariance(row):
    arrays = row.inputs()
    value = run(row, arrays)[0]
    for name, seed in itertools.product(row.mapped, range(3)):
        changed, change_result = row.mapped[name](np.random.default_rng(seed), arrays)
        np.testing.assert_allclose(run(row, changed)[0], change_result(value), rtol=1e-8, atol=1e-12, err_msg=name)


@each([row for row in ROWS if not row.ordered])
def test_permuting_the_examples_permutes_the_result(row):
    arrays = row.inputs()
    value, gradients = run(row, arrays)
    assert np.ptp(value) > 1e-6, "equal results would hide an order"
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(arrays[0]))
        permuted, permuted_gradients = run(row, row.batched(arrays, lambda array, order=order: array[order]))
        np.testing.assert_allclose(permuted, value[order], rtol=1e-9, atol=1e-13)
        for position, gradient, expected in zip(row.floating(arrays), permuted_gradients, gradients, strict=True):
            moved = expected if position in row.shared else expected[order]
            np.testing.assert_allclose(gradient, moved, rtol=1e-8, atol=1e-12)


@each([row for row in ROWS if not row.relational])
def test_an_example_depends_on_itself_alone(row):
    """Without a relation over the batch, in value and in gradient."""
    arrays = row.inputs()
    value, gradients = run(row, arrays)
    shared = {position: 0.0 for position in row.floating(arrays) if position in row.shared}
    for index in range(len(arrays[0])):
        one, one_gradients = run(row, row.batched(arrays, lambda array, i=index: array[i : i + 1]))
        np.testing.assert_allclose(one[0], value[index], rtol=1e-10)
        for position, gradient, expected in zip(row.floating(arrays), one_gradients, gradients, strict=True):
            if position in shared:
                shared[position] += gradient
            else:
                np.testing.assert_allclose(gradient[0], expected[index], rtol=1e-9, atol=1e-13)
    for position, expected in zip(row.floating(arrays), gradients, strict=True):
        if position in shared:
            np.testing.assert_allclose(shared[position], expected, rtol=1e-9, atol=1e-13)


@each(COMPARING)
def test_equal_student_has_no_loss_and_no_gradient(row):
    for hyper in row.perfect_hyper or row.hyper:
        for scale in (1e-2, 1.0, 30.0):
            arrays = row.perfect(row.inputs(scale=scale))
            value, gradients = run(row, arrays, dtype=np.float32, hyper=hyper)
            np.testing.assert_allclose(value, 0, atol=1e-6)
            for gradient in gradients:
                np.testing.assert_allclose(gradient, 0, atol=1e-5 * max(1, 1 / scale))


@each(COMPARING)
def test_comparison_is_never_negative(row):
    """Up to the rounding error of a difference of logarithms of a nearly equal student."""
    for dtype, rounding in ((np.float64, 1e-14), (np.float32, row.rounding)):
        for scale in (1e-3, 1.0, 1e3):
            for seed in range(5):
                assert run(row, row.inputs(seed=seed, scale=scale), dtype=dtype)[0].min() >= -rounding


@each(COMPARING)
def test_gradient_step_lowers_the_loss(row):
    """The sign of the gradient, end to end."""
    student, *rest = row.inputs()
    value, (gradient, *_) = run(row, (student, *rest))
    slope = (gradient**2).sum()
    step = 1e-3 * value.sum() / slope
    after = run(row, (student - step * gradient, *rest))[0].sum()
    assert value.sum() - 1.1 * step * slope < after < value.sum() - 0.9 * step * slope
