"""Overlaps of boxes."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import dense


def test_overlaps_by_hand():
    boxes = jnp.array([[0.0, 0.0, 4.0, 2.0], [1.0, 1.0, 1.0, 3.0]])  # the second has no area
    others = jnp.array([[0.0, 0.0, 4.0, 2.0], [2.0, 0.0, 6.0, 2.0], [4.0, 0.0, 5.0, 2.0]])
    np.testing.assert_allclose(dense.box_iou(boxes, others), [[1, 1 / 3, 0], [0, 0, 0]], rtol=1e-6)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"others: expected boxes \[\.\.\., n, 4\], got .*\[3\]"):
        dense.box_iou(jnp.zeros((2, 4)), jnp.zeros(3))
