"""Heatmaps of points, against loops in NumPy, and points of heatmaps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import dense

RNG = np.random.default_rng(0)
POINTS = np.float32(RNG.uniform(-4, 40, size=(2, 3, 2)))
MASK = np.array([[True, True, False], [False, True, True]])


def drawn(points, mask, height, width, sigma, stride):
    found = np.zeros((len(points), height, width, points.shape[1]))
    for b, i, j, k in np.ndindex(found.shape):
        if mask[b, k]:
            x, y = points[b, k] / stride
            found[b, i, j, k] = np.exp(-((j + 0.5 - x) ** 2 + (i + 0.5 - y) ** 2) / (2 * sigma**2))
    return found


@pytest.mark.parametrize(("sigma", "stride"), [(1.0, 4.0), (1.7, 2.5)])
def test_gaussians_are_those_of_the_formula(sigma, stride):
    found = dense.draw_heatmaps(jnp.array(POINTS), (7, 9), sigma, stride=stride, joint_where=jnp.array(MASK))
    np.testing.assert_allclose(found, drawn(POINTS.astype(np.float64), MASK, 7, 9, sigma, stride), atol=1e-6)


def test_masked_points_are_not_read():
    points = np.where(MASK[..., None], POINTS, np.nan)
    found = dense.draw_heatmaps(jnp.array(points), (5, 5), joint_where=jnp.array(MASK))
    assert np.isfinite(found).all() and not np.any(np.moveaxis(np.asarray(found), -1, 1)[~MASK])
    assert dense.draw_heatmaps(jnp.array(POINTS)[None], (5, 6)).shape == (1, 2, 5, 6, 3)  # clips


def peaked(heatmaps, stride, subpixel):
    points, scores = np.zeros((*heatmaps.shape[:1], heatmaps.shape[-1], 2)), np.zeros(heatmaps[:, 0, 0].shape)
    for b, k in np.ndindex(scores.shape):
        one = heatmaps[b, :, :, k]
        i, j = np.unravel_index(np.argmax(one), one.shape)
        scores[b, k] = one[i, j]
        for axis, (at, line) in enumerate(((j, one[i]), (i, one[:, j]))):
            move = 0.0
            if 0 < at < len(line) - 1:
                low, top, high = line[at - 1 : at + 2]
                if subpixel == "quarter":
                    move = 0.25 * np.sign(high - low)
                elif subpixel == "parabola":
                    low, top, high = np.log([low, top, high])
                    move = (high - low) / (2 * (2 * top - low - high))
            points[b, k, axis] = (at + 0.5 + move) * stride
    return points, scores


@pytest.mark.parametrize("subpixel", ["quarter", "parabola", "none"])
def test_peaks_are_those_of_loops(subpixel):
    heatmaps = RNG.uniform(0.1, 1, size=(3, 4, 5, 6)).astype(np.float32)
    found = dense.peaks(jnp.array(heatmaps), stride=3.0, subpixel=subpixel)
    points, scores = peaked(heatmaps.astype(np.float64), 3.0, subpixel)
    np.testing.assert_allclose(found.points, points, atol=1e-4)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)


def test_points_are_found_again():
    points = jnp.array(RNG.uniform(6, 34, size=(4, 5, 2)), jnp.float32)
    heatmaps = dense.draw_heatmaps(points, (10, 10))

    def furthest(subpixel):
        return np.abs(dense.peaks(heatmaps, subpixel=subpixel).points - points).max()

    assert furthest("parabola") < 1e-3 < furthest("quarter") <= 1.001 < furthest("none") <= 2.001


def test_flat_low_and_large_heatmaps_have_finite_points():
    for value in (0.0, -3.0, 1e4):
        heatmaps = jnp.full((1, 3, 3, 2), value, jnp.bfloat16).at[0, 1, 1, 0].add(1)
        found = dense.peaks(heatmaps, subpixel="parabola")
        assert np.isfinite(found.points).all() and found.points.dtype == jnp.float32
    np.testing.assert_allclose(dense.peaks(jnp.zeros((1, 2, 2, 1))).points, [[[2.0, 2.0]]])  # the first one


def test_heatmaps_have_finite_gradients():
    points = jnp.array([[[4.0, 4.0], [np.nan, 0.0]]])
    where = jnp.array([[True, False]])
    grads = jax.grad(lambda p: dense.draw_heatmaps(p, (3, 3), joint_where=where).sum())(points)
    assert np.isfinite(grads).all()


def test_what_is_refused():
    with pytest.raises(ValueError, match="points: expected positions"):
        dense.draw_heatmaps(jnp.zeros((2, 3)), (4, 4))
    with pytest.raises(ValueError, match=r"joint_where: expected bool\[2\]"):
        dense.draw_heatmaps(jnp.zeros((2, 2)), (4, 4), joint_where=jnp.zeros(2))
    with pytest.raises(ValueError, match="positive"):
        dense.draw_heatmaps(jnp.zeros((2, 2)), (4, 4), 0.0)
    with pytest.raises(ValueError, match="heatmaps: expected"):
        dense.peaks(jnp.zeros((3, 3)))
    with pytest.raises(ValueError, match="quarter"):
        dense.peaks(jnp.zeros((3, 3, 1)), subpixel="half")
