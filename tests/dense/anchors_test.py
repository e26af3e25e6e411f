"""Anchors, and their matches with objects against a brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import dense
from tests.dense import reference

MATCH = jax.jit(dense.match_anchors)
ANCHORS = dense.anchors((10, 13), strides=[4, 8], sizes=[[4, 6], [8, 10]], ratios=[0.5, 1.0])


def test_anchors_by_hand():
    found = dense.anchors((5, 9), strides=[4, 8], sizes=[4, 8], ratios=[1.0, 4.0])
    assert found.shape == ((2 * 3 + 1 * 2) * 2, 4)
    np.testing.assert_allclose(found[0], [0, 0, 4, 4])
    np.testing.assert_allclose(found[1], [1, -2, 3, 6])  # an area of 16, and four times as high as wide
    np.testing.assert_allclose(found[2], [4, 0, 8, 4])  # the next column
    np.testing.assert_allclose(found[6], [0, 4, 4, 8])  # the next row
    np.testing.assert_allclose(found[12], [0, 0, 8, 8])  # the next level
    sizes = dense.anchors((4, 4), strides=[4], sizes=[(2, 4)], ratios=[1.0, 4.0])
    np.testing.assert_allclose(sizes[:, 2] - sizes[:, 0], [2, 1, 4, 2])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sizes": [4]}, r"sizes: expected one size, or the same number of sizes, for each of the strides \[4, 8\]"),
        ({"sizes": [[4], [8, 9]]}, r"sizes: expected one size, or the same number"),
        ({"ratios": []}, r"ratios: expected positive numbers"),
        ({"strides": [4, 0]}, r"strides: expected positive numbers"),
    ],
)
def test_invalid_anchors_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        dense.anchors(**{"image_size": (8, 8), "strides": [4, 8], "sizes": [4, 8], **arguments})


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_matches_are_those_of_the_brute_force(seed):
    """Whole pixels, so that overlaps are equal often; some boxes beyond the edge, some images without any."""
    rng = np.random.default_rng(seed)
    boxes = reference.random_boxes(rng, 12, 7) - 2
    exists = rng.random((12, 7)) < 0.7
    exists[0] = False
    matches = MATCH(ANCHORS, np.where(exists[..., None], boxes, np.nan), box_where=exists)
    for image in range(12):
        found, ignored = reference.match(np.asarray(ANCHORS), boxes[image], exists[image], 0.5, 0.4)
        np.testing.assert_array_equal(np.where(matches.matched[image], matches.objects[image], -1), found)
        np.testing.assert_array_equal(matches.ignored[image], ignored)
    assert matches.ignored.any() and not matches.matched[0].any() and not matches.ignored[0].any()


def test_every_object_keeps_an_anchor_and_edges_survive():
    boxes = jnp.array(
        [
            [0.0, 0.0, 1.0, 1.0],  # a corner of the image
            [12.5, 9.5, 13.0, 10.0],  # the other corner
            [0.0, 0.0, 1.0, 1.0],  # the same box again keeps another anchor
            [5.0, 5.0, 5.0, 9.0],  # no area
            [100.0, 0.0, 110.0, 9.0],  # no anchor overlaps it
        ]
    )
    matches = MATCH(ANCHORS, boxes)
    assert sorted(set(matches.objects[matches.matched].tolist())) == [0, 1, 2]
    padded = MATCH(ANCHORS, jnp.pad(boxes, ((0, 27), (0, 0))), box_where=jnp.arange(32) < 5)
    for name, x in matches._asdict().items():
        np.testing.assert_array_equal(x, getattr(padded, name), err_msg=name)


@pytest.mark.slow
def test_an_anchor_has_the_object_it_overlaps_most():
    anchors = jnp.array([[0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 8.0, 4.0]])
    matches = MATCH(anchors, jnp.array([[0.0, 0.0, 4.0, 3.0], [0.0, 0.0, 4.0, 4.0]]))
    # The second box chooses first, by its larger overlap; the first one finds no free anchor that it overlaps.
    assert matches.objects[0] == 1 and matches.matched.tolist() == [True, False]
    bands = functools.partial(dense.match_anchors, anchors, jnp.array([[0.0, 0.0, 8.0, 2.5]]))
    assert bands().matched.tolist() == [True, False]  # both overlap by 10 / 26
    assert bands(positive=0.4, negative=0.3).ignored.tolist() == [False, True]
    assert bands(positive=0.3, negative=0.3).matched.tolist() == [True, True]
    labels = dense.take_matched(
        jnp.array([[5, 6], [7, 8]]), dense.Matches(jnp.array([[1, 0, 1], [0, 0, 1]]), None, None)
    )
    assert labels.tolist() == [[6, 5, 6], [7, 7, 8]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positive": 0.3}, r"positive, negative: expected 0 <= negative <= positive <= 1, got 0\.3, 0\.4"),
        ({"boxes": jnp.zeros((0, 4))}, r"boxes: expected at least one row"),
        ({"anchors": jnp.zeros((2, 5, 4))}, r"anchors: expected boxes \[n, 4\]"),
        ({"box_where": jnp.ones(3)}, r"box_where: expected bool\[3\], got float32\[3\]"),
    ],
)
def test_invalid_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        dense.match_anchors(**{"anchors": ANCHORS, "boxes": jnp.zeros((3, 4)), **arguments})
