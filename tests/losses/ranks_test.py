"""Properties of DarkRank: lists, orders and ties."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests.loss_runs import run
from tests.loss_table import BY_NAME

HARD, SOFT = BY_NAME["darkrank_hard"], BY_NAME["darkrank_soft"]
BOTH = pytest.mark.parametrize("row", [HARD, SOFT], ids=str)


def test_equal_distances_make_every_order_as_likely():
    """The corners of a simplex: 4! orders of the others."""
    simplex, teacher = np.eye(5), HARD.inputs(((5, 3),) * 2)[0]
    np.testing.assert_allclose(run(HARD, (simplex, teacher))[0], np.log(24), rtol=1e-9)
    np.testing.assert_allclose(run(SOFT, (simplex, 7 * simplex))[0], 0, atol=1e-12)


def test_soft_loss_of_a_certain_teacher_is_the_hard_loss():
    """Far apart, one order has all of the probability."""
    student = SOFT.inputs(((5, 3), (5, 1)))[0]
    teacher = 10 * np.array([[0.0], [1.0], [3.0], [7.0], [15.0]])
    np.testing.assert_allclose(run(SOFT, (student, teacher))[0], run(HARD, (student, teacher))[0], rtol=1e-9)


def test_soft_gradient_is_the_average_of_hard_gradients():
    """Σ_π P_t(π) (-log P_s(π)) differs from the divergence by the teacher's entropy; here of two orders."""
    student, teacher = SOFT.inputs(((3, 4), (3, 2)))
    where = np.array([True, True, True])
    hyper = {"list_size": 2}
    value, (gradient, _) = run(SOFT, (student, teacher), where=where, hyper=hyper)
    distances = np.linalg.norm(teacher[:, None] - teacher[None], axis=-1)
    expected, slope = np.zeros(3), np.zeros_like(student)
    for anchor in range(3):
        first, second = sorted(set(range(3)) - {anchor}, key=lambda j, a=anchor: distances[a, j])
        gap = 3 * (distances[anchor, second] ** 3 - distances[anchor, first] ** 3)
        likely = 1 / (1 + math.exp(-gap))
        cotangent = (np.arange(3) == anchor).astype(float)
        # The same list the other way round, as a teacher in which the two change places gives it.
        turned = np.zeros((3, 1))
        turned[second], turned[first] = 1, 2
        for probability, order in ((likely, teacher), (1 - likely, turned)):
            surprise, (one, _) = run(HARD, (student, order), cotangent=cotangent, hyper=hyper)
            expected[anchor] += probability * (math.log(probability) + surprise[anchor])
            slope += probability * one
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9)


def test_hard_loss_depends_on_the_teachers_order_alone():
    student, teacher = HARD.inputs(((7, 4), (7, 1)))
    value, (_, gradient) = run(HARD, (student, teacher))
    order = np.argsort(np.abs(teacher - teacher.T), axis=1)
    moved = teacher + 1e-3 * np.random.default_rng(0).normal(size=teacher.shape)
    np.testing.assert_array_equal(order, np.argsort(np.abs(moved - moved.T), axis=1))
    np.testing.assert_allclose(run(HARD, (student, moved))[0], value, rtol=1e-12)
    np.testing.assert_array_equal(gradient, 0)


@BOTH
def test_list_is_at_most_the_other_examples(row):
    """Three examples have lists of two, whether there are no others or they do not count."""
    student, teacher = row.inputs(((3, 4), (3, 2)))
    value, gradients = run(row, (student, teacher), hyper={"list_size": 2})
    for size in (3, 4, 6):
        longer, longer_gradients = run(row, (student, teacher), hyper={"list_size": size})
        np.testing.assert_allclose(longer, value, rtol=1e-12)
        for gradient, expected in zip(longer_gradients, gradients, strict=True):
            np.testing.assert_allclose(gradient, expected, rtol=1e-12, atol=1e-15)
    where = np.isin(np.arange(7), (1, 2, 5))
    wider = [np.full((7, *array.shape[1:]), np.nan) for array in (student, teacher)]
    for array, part in zip(wider, (student, teacher), strict=True):
        array[where] = part
    masked, masked_gradients = run(row, wider, where=where)
    np.testing.assert_allclose(masked[where], value, rtol=1e-12)
    for gradient, expected in zip(masked_gradients, gradients, strict=True):
        np.testing.assert_allclose(gradient[where], expected, rtol=1e-12, atol=1e-15)


@BOTH
def test_one_other_example_gives_zero(row):
    student, teacher = row.inputs(((6, 4), (6, 2)))
    for arrays, hyper in (((student, teacher), {"list_size": 1}), ((student[:2], teacher[:2]), {})):
        value, gradients = run(row, arrays, hyper=hyper)
        np.testing.assert_array_equal(value, 0)
        assert all((gradient == 0).all() for gradient in gradients)


def test_longer_lists():
    """As many as the hard loss is asked for, and the 720 permutations of six."""
    student, teacher = HARD.inputs(((12, 4), (12, 3)))
    hyper = {"list_size": 11}
    np.testing.assert_allclose(
        run(HARD, (student, teacher), hyper=hyper)[0], HARD.reference(student, teacher, **hyper), rtol=1e-9
    )
    hyper = {"list_size": 6}
    np.testing.assert_allclose(
        run(SOFT, (student, teacher), hyper=hyper)[0], SOFT.reference(student, teacher, **hyper), rtol=1e-9
    )
    with pytest.raises(ValueError, match=r"list_size.*6.*7"):
        losses.darkrank_soft(jnp.asarray(student), jnp.asarray(teacher), list_size=7)


@BOTH
@pytest.mark.parametrize("hyper", [{"alpha": 0.0}, {"beta": -1.0}, {"list_size": 0}, {"beta": float("nan")}], ids=str)
def test_a_hyperparameter_that_is_not_positive(row, hyper):
    ((name, number),) = hyper.items()
    with pytest.raises(ValueError, match=rf"{name}.*positive.*{number}"):
        row.function(jnp.ones((3, 2)), jnp.ones((3, 2)), **hyper)


@BOTH
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["64", "32"])
def test_ties_are_in_the_order_of_the_batch(row, dtype):
    """A teacher to whom all are the same ranks them as they come, far from the origin and on several devices too."""
    student = row.inputs(((8, 4), (8, 3)))[0]
    for offset in (0.0, 10.0):
        teacher = np.tile(np.random.default_rng(0).normal(size=(1, 3)) + offset, (8, 1))
        value, _ = run(row, (student, teacher), dtype=dtype, optimized=dtype == np.float32)
        np.testing.assert_allclose(value, row.reference(student, teacher), rtol=1e-5)
        slices = [array.reshape(4, 2, -1).astype(dtype) for array in (student, teacher)]
        with jax.enable_x64(dtype == np.float64):
            mapped = jax.vmap(functools.partial(row.function, axis_name="devices"), axis_name="devices")(*slices)
        np.testing.assert_allclose(np.reshape(mapped, -1), value, rtol=1e-5)


@BOTH
@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["64", "32"])
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 3.0])
def test_coinciding_points(row, dtype, beta):
    """A distance of 0 has no direction, and its root no slope; any power of it has the score 0."""
    student, teacher = row.inputs(((6, 4), (6, 3)))
    student[[3, 4]], teacher[[3, 5]] = student[0], teacher[0]
    student, teacher = student.astype(dtype).astype(float), teacher.astype(dtype).astype(float)
    value, gradients = run(row, (student, teacher), hyper={"beta": beta}, dtype=dtype, optimized=dtype == np.float32)
    expected = row.reference(student, teacher, beta=beta)
    np.testing.assert_allclose(value, expected, rtol=1e-9 if dtype == np.float64 else 1e-4, atol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
