"""Overlaps of boxes, and boxes as offsets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import dense
from tests.dense import reference

ANCHORS = dense.anchors((12, 20), strides=[4, 8], sizes=[6, 12], ratios=[0.5, 2.0])


def test_overlaps_by_hand():
    boxes = jnp.array([[0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 1.0, 3.0]])  # the second has no area
    others = jnp.array([[0.0, 0.0, 4.0, 2.0], [2.0, 0.0, 6.0, 2.0], [4.0, 0.0, 5.0, 2.0]])
    np.testing.assert_allclose(dense.box_iou(boxes, others), [[1, 1 / 3, 0], [0, 0, 0]], rtol=1e-6)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"others: expected boxes \[\.\.\., n, 4\], got .*\[3\]"):
        dense.box_iou(jnp.zeros((2, 4)), jnp.zeros(3))


def test_offsets_by_hand():
    """An anchor of 4 × 8 at (2, 4), and a box of 8 × 4 whose center is at (6, 2)."""
    box, anchor = jnp.array([[2.0, 0.0, 10.0, 4.0]]), jnp.array([[0.0, 0.0, 4.0, 8.0]])
    plain = [[1.0, -0.25, np.log(2), -np.log(2)]]
    np.testing.assert_allclose(dense.encode_boxes(box, anchor, variances=(1, 1, 1, 1)), plain, rtol=1e-6)
    np.testing.assert_allclose(dense.encode_boxes(box, anchor), plain / np.array([0.1, 0.1, 0.2, 0.2]), rtol=1e-6)


@pytest.mark.slow
def test_decoding_is_the_inverse_of_encoding():
    rng = np.random.default_rng(0)
    boxes = reference.random_boxes(rng, 3, len(ANCHORS))
    offsets = dense.encode_boxes(boxes, ANCHORS)
    np.testing.assert_allclose(dense.decode_boxes(offsets, ANCHORS), boxes, atol=1e-4)
    offsets = jnp.asarray(rng.normal(size=(2, len(ANCHORS), 4)), jnp.float32)
    np.testing.assert_allclose(dense.encode_boxes(dense.decode_boxes(offsets, ANCHORS), ANCHORS), offsets, atol=1e-4)


@pytest.mark.slow
def test_extreme_offsets_and_boxes_without_area_are_finite():
    anchor = jnp.array([[0.0, 0.0, 4.0, 8.0]])
    wild = dense.decode_boxes(jnp.array([[0.0, 0.0, 1e6, -1e6]]), anchor)
    np.testing.assert_allclose(wild, [[2 - 125, 4, 2 + 125, 4]], rtol=1e-5)  # 62.5 times the width, and no height
    grad = jax.grad(lambda x: dense.decode_boxes(x, anchor).sum())(jnp.array([[1e4, 0.0, 1e6, -1e6]]))
    assert np.isfinite(grad).all()
    point = jnp.array([[3.0, 3.0, 3.0, 3.0]])
    np.testing.assert_allclose(dense.encode_boxes(point, anchor), [[2.5, -1.25, 0, 0]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: dense.encode_boxes(x, anchor).sum())(point)).all()
    assert dense.decode_boxes(jnp.zeros((1, 4), jnp.bfloat16), anchor).dtype == jnp.float32


def test_boxes_are_cut_to_the_image():
    boxes = jnp.array([[[-1.0, -2.0, 3.0, 4.0], [5.0, 6.0, 30.0, 40.0], [25.0, 0.0, 30.0, 2.0]]])
    clipped = dense.clip_boxes(boxes, (10, 20))
    np.testing.assert_array_equal(clipped, [[[0, 0, 3, 4], [5, 6, 20, 10], [20, 0, 20, 2]]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: dense.encode_boxes(x, ANCHORS), r"anchors: expected an anchor for each of boxes float32\[3, 4\]"),
        (lambda x: dense.decode_boxes(x, x, variances=(1, 1, 1)), r"variances: expected four positive numbers"),
        (lambda x: dense.decode_boxes(x, x, max_ratio=0.5), r"max_ratio: expected at least 1"),
        (lambda x: dense.decode_boxes(x[0], x), r"offsets: expected boxes"),
    ],
)
def test_invalid_arguments_raise(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((3, 4)))
