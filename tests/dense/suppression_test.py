"""Hard and soft suppression against brute forces."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import dense
from tests.dense import reference

MOST, N = 6, 25
HARD = jax.jit(functools.partial(dense.non_maximum_suppression, most=MOST, threshold=0.5))
LINEAR = jax.jit(functools.partial(dense.soft_non_maximum_suppression, most=MOST, form="linear", threshold=0.25))
GAUSSIAN = jax.jit(functools.partial(dense.soft_non_maximum_suppression, most=MOST, least_score=0.05))


def images(seed, batch=16):
    """Boxes of whole pixels; scores of eighths, so that there are ties; three classes; some boxes are masked."""
    rng = np.random.default_rng(seed)
    boxes = reference.random_boxes(rng, batch, N)
    scores = rng.integers(1, 9, (batch, N)).astype(np.float32) / 8
    return boxes, scores, rng.integers(0, 3, (batch, N)), rng.random((batch, N)) < 0.8


def check(kept, image, factor, least=-np.inf, rtol=0.0):
    for number, rows in enumerate(zip(*image, strict=True)):
        expected = reference.suppress(*rows, MOST, factor, least)
        count = len(expected)
        assert np.asarray(kept.mask[number]).tolist() == [True] * count + [False] * (MOST - count)
        assert np.asarray(kept.rows[number]).tolist() == [n for n, _ in expected] + [0] * (MOST - count)
        scores = [score for _, score in expected] + [0.0] * (MOST - count)
        np.testing.assert_allclose(kept.scores[number], scores, rtol=rtol)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_hard_suppression_is_exact(seed):
    boxes, scores, labels, where = image = images(seed)
    check(HARD(boxes, scores, labels=labels, where=where), image, lambda iou: 0.0 if iou > 0.5 else 1.0)


@pytest.mark.slow
def test_linear_suppression_is_that_of_the_paper():
    boxes, scores, labels, where = image = images(2)
    kept = LINEAR(boxes, scores, labels=labels, where=where)
    check(kept, image, lambda iou: 1 - iou if iou >= 0.25 else 1.0, 0.001, rtol=1e-6)


@pytest.mark.slow
def test_gaussian_suppression_is_that_of_the_paper():
    boxes, scores, labels, where = image = images(3)
    # Scores that are far from each other: the order of equal products would be one of rounding.
    scores = image[1][:] = np.random.default_rng(3).uniform(0.1, 1, scores.shape)
    kept = GAUSSIAN(boxes, scores.astype(np.float32), labels=labels, where=where)
    check(kept, (boxes, scores.astype(np.float32), labels, where), lambda iou: np.exp(-(iou**2) / 0.5), 0.05, rtol=1e-5)


@pytest.mark.parametrize("run", [HARD, *(pytest.param(run, marks=pytest.mark.slow) for run in (LINEAR, GAUSSIAN))])
def test_masked_boxes_nan_and_no_area(run):
    boxes = np.zeros((4, N, 4), np.float32)  # no box has an area: none removes another, and each is taken once
    scores = np.full((4, N), 0.5, np.float32)
    scores[1], scores[2, 3:] = np.nan, -np.inf
    labels, where = np.zeros((4, N), int), np.ones((4, N), bool)
    where[3] = False
    kept = run(boxes, scores, labels=labels, where=where)
    assert kept.mask.sum(-1).tolist() == [MOST, 0, 3, 0]
    assert kept.rows[0].tolist() == list(range(MOST)) and kept.rows[2].tolist() == [0, 1, 2, 0, 0, 0]
    assert np.isfinite(kept.scores).all() and (kept.scores[1] == 0).all()


@pytest.mark.slow
def test_one_image_rows_beyond_the_boxes_and_vmap():
    boxes, scores, labels, where = (x[0] for x in images(4))
    one = dense.non_maximum_suppression(boxes, scores, labels=labels, where=where, most=N + 5)
    assert one.rows.shape == (N + 5,) and not one.mask[N:].any()
    batched = jax.vmap(functools.partial(dense.non_maximum_suppression, most=MOST))(*images(4)[:2])
    np.testing.assert_array_equal(batched.rows[0], dense.non_maximum_suppression(boxes, scores, most=MOST).rows)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_square_of_the_boxes():
    n = 20_000
    args = jax.ShapeDtypeStruct((n, 4), jnp.float32), jax.ShapeDtypeStruct((n,), jnp.float32)
    for run in (dense.non_maximum_suppression, dense.soft_non_maximum_suppression):
        shapes = re.findall(r"\[([\d,]+)\]", str(jax.make_jaxpr(run)(*args)))
        sizes = [math.prod(map(int, shape.split(","))) for shape in shapes if shape.strip(",")]
        assert n < max(sizes) <= 4 * n


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"boxes": jnp.zeros(4)}, r"boxes: expected boxes \[\.\.\., n, 4\]"),
        ({"scores": jnp.zeros(2)}, r"scores: expected one for each of boxes float32\[3, 4\], got float32\[2\]"),
        ({"labels": jnp.zeros(1, int)}, r"labels: expected one for each of boxes"),
        ({"where": jnp.zeros(3)}, r"where: expected a boolean mask"),
        ({"most": 0}, r"most: expected at least 1, got 0"),
        ({"threshold": 1.5}, r"threshold: expected an IoU from 0 to 1"),
    ],
)
def test_invalid_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        dense.non_maximum_suppression(**{"boxes": jnp.zeros((3, 4)), "scores": jnp.zeros(3), **arguments})


def test_invalid_soft_arguments_raise():
    for arguments, message in (({"form": "hard"}, "form: expected 'gaussian'"), ({"sigma": 0.0}, "sigma: expected a")):
        with pytest.raises(ValueError, match=message):
            dense.soft_non_maximum_suppression(jnp.zeros((3, 4)), jnp.zeros(3), **arguments)
