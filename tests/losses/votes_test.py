"""Properties of a vote of several teachers: their sizes, ties, masks, devices, a margin that moves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxkd
from jaxkd.losses import voted_dissimilarity
from tests import tiny
from tests.references import finite_difference
from tests.references import voted_dissimilarity as reference

RNG = np.random.default_rng(0)
STUDENT = RNG.normal(size=(8, 3))
TEACHERS = (RNG.normal(size=(8, 4)), RNG.normal(size=(8, 2, 2)), RNG.normal(size=(8, 1)))
KEEP = np.array([True, False, True, True, True, False, True, True])
AXIS = "devices"


@functools.partial(jax.jit, static_argnames=("margin", "weights"))
def graded(student, teachers, where, margin=1.0, weights=None):
    def total(student, teachers):
        value = voted_dissimilarity(student, teachers, margin=margin, weights=weights, where=where)
        return value.sum(), value

    (_, value), gradients = jax.value_and_grad(total, (0, 1), has_aux=True)(student, teachers)
    return value, gradients


def run(student, teachers, where=None, dtype=np.float64, **options):
    with jax.enable_x64(dtype == np.float64):
        cast = jax.tree.map(lambda x: jnp.asarray(x, dtype), (student, tuple(teachers)))
        value, (slope, of_teachers) = graded(*cast, where, **options)
        assert all((np.asarray(x) == 0).all() for x in of_teachers)
        return np.asarray(value), np.asarray(slope)


def test_teachers_of_several_sizes():
    value, slope = run(STUDENT, TEACHERS, margin=0.7, weights=(0.5, 0.4, 0.3))
    expected = reference(STUDENT, TEACHERS, margin=0.7)  # any two are a majority
    assert (expected > 0).all()
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    np.testing.assert_allclose(run(STUDENT, TEACHERS, margin=0.7)[0], expected, rtol=1e-9)
    difference = finite_difference(lambda x: reference(x, TEACHERS, margin=0.7).sum(), STUDENT, step=1e-6)
    np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-8)


def test_majority_vote():
    value, _ = run(STUDENT, TEACHERS, margin=0.7, weights=(3.0, 1.0, 1.0))
    np.testing.assert_allclose(value, run(STUDENT, TEACHERS[:1], margin=0.7)[0], rtol=1e-12)
    assert np.abs(value / run(STUDENT, TEACHERS, margin=0.7)[0] - 1).max() > 0.01


def test_one_array_is_one_teacher():
    alone = voted_dissimilarity(jnp.asarray(STUDENT), jnp.asarray(TEACHERS[0]))
    np.testing.assert_array_equal(alone, voted_dissimilarity(jnp.asarray(STUDENT), (jnp.asarray(TEACHERS[0]),)))
    np.testing.assert_allclose(alone, reference(STUDENT, TEACHERS[0]), rtol=1e-4)


def test_student_that_agrees_by_the_margin_has_loss_zero():
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    assert (run(10 * line, (line,))[0] == 0).all()
    opposed = run(line, (np.array([[0.0], [5.0], [3.0], [1.0]]),))[0]
    assert opposed.sum() > 0


def test_tied_triplets_are_excluded():
    """Two teachers that contradict one another, and a teacher to whom two are equally far."""
    one, other = np.array([[0.0], [1.0], [3.0]]), np.array([[0.0], [3.0], [1.0]])
    student = np.array([[0.0], [2.0], [2.5]])
    value, _ = run(student, (one, other))
    np.testing.assert_allclose(value, reference(student, (one, other)), rtol=1e-12)
    assert value[0] == 0
    same = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])  # 0 is as far from 1 as from 2
    value, _ = run(student, (same,))
    assert value[0] == 0 and value[1] > 0
    np.testing.assert_allclose(value, reference(student, (same,)), rtol=1e-12)
    assert (run(student, (np.zeros((3, 2)),))[0] == 0).all()


def test_masking_is_dropping():
    value, slope = run(STUDENT[KEEP], [x[KEEP] for x in TEACHERS])
    holed = [np.where(KEEP.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan) for x in (STUDENT, *TEACHERS)]
    masked, masked_slope = run(holed[0], holed[1:], where=KEEP)
    np.testing.assert_allclose(masked[KEEP], value, rtol=1e-12)
    np.testing.assert_allclose(masked_slope[KEEP], slope, rtol=1e-12)
    assert (masked[~KEEP] == 0).all() and (masked_slope[~KEEP] == 0).all()


@pytest.mark.parametrize("way", ["vmap", "shard_map"])
def test_devices(way):
    """Each anchor's share, and the gradient of their sum, whatever the split; duplicates on two devices tie."""
    student, *teachers = (x[[0, 1, 2, 3, 4, 0, 1, 5]].astype(np.float32) for x in (STUDENT, *TEACHERS))
    local = functools.partial(voted_dissimilarity, margin=0.7, axis_name=AXIS)
    if way == "vmap":

        def mapped(student, teachers, where):
            split = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), (student, teachers))
            values = jax.vmap(lambda s, t, w: local(s, t, where=w), axis_name=AXIS)(*split, where.reshape(4, 2))
            return values.reshape(8)

    else:
        spec = PartitionSpec(AXIS)
        mapped = jax.shard_map(
            lambda s, t, w: local(s, t, where=w),
            mesh=Mesh(np.array(jax.devices()[:4]), (AXIS,)),
            in_specs=(spec, spec, spec),
            out_specs=spec,
        )
    graded = jax.jit(jax.value_and_grad(lambda s, t, w: mapped(s, t, w).sum()))
    for where in (np.ones(8, bool), KEEP):
        expected, slope = run(student, teachers, where=where, margin=0.7, dtype=np.float32)
        np.testing.assert_allclose(mapped(student, tuple(teachers), where), expected, rtol=1e-5)
        total, found = graded(student, tuple(teachers), where)
        np.testing.assert_allclose(total, expected.sum(), rtol=1e-5)
        np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-5)


def test_term_of_a_distillation():
    """Forward mode too, and a margin that is a schedule."""
    loss = jaxkd.term(
        voted_dissimilarity,
        "student/vector",
        ("teacher/vector", "teacher/logits"),
        margin=lambda step: 0.5 + 0.0 * step,
        weight=2.0,
    )
    kd = jaxkd.distill(tiny.student, tiny.teacher(), jaxkd.combine(vote=loss), optimizer=optax.sgd(0.1))
    state = kd.init(jax.random.key(0), tiny.batch(8))
    step = jax.jit(kd.step)
    found = []
    for _ in range(20):
        state, metrics = step(state, tiny.batch(8))
        found.append(tiny.numbers(metrics)["vote"])
    assert found[-1] < found[0]
    tangent = jax.jvp(
        lambda m: voted_dissimilarity(jnp.asarray(STUDENT), tuple(map(jnp.asarray, TEACHERS)), margin=m).sum(),
        (1.0,),
        (1.0,),
    )[1]
    moved = [reference(STUDENT, TEACHERS, margin=m).sum() for m in (1 - 1e-6, 1 + 1e-6)]
    np.testing.assert_allclose(tangent, (moved[1] - moved[0]) / 2e-6, rtol=1e-5)


def test_invalid_arguments():
    x = jnp.ones((3, 2))
    for teachers, options, message in (
        ((), {}, "teachers: expected the features of at least one teacher, got none"),
        ((x, jnp.ones((4, 2))), {}, r"teachers\[1\]: expected the student's batch of 3, got float32\[4, 2\]"),
        ((x, jnp.ones(3)), {}, r"teachers\[1\]: expected floating-point features \[batch, ...\], got float32\[3\]"),
        ((x,), {"weights": (1.0, 2.0)}, r"weights: expected .* each of 1 teachers, got shape \[2\]"),
        ((x, x), {"weights": (1.0, -2.0)}, r"weights: expected .* not negative .* got \[1.0, -2.0\]"),
        ((x,), {"margin": -1.0}, "margin: expected at least 0, got -1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            voted_dissimilarity(x, teachers, **options)
