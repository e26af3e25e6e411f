"""Rows of `jaxkd.losses.dense.pose`."""

import numpy as np

from tests.loss_changes import Arrays, mirror, permute_last, scale_each, shift_both
from tests.loss_row import MAPS, Hand, Row, feature_extremes


def scale_joints(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Scales every heatmap by its own positive factor."""
    return tuple(array * rng.uniform(0.1, 10, size=(len(array), 1, 1, array.shape[-1])) for array in arrays)


SHAPES = (((5, 3, 4, 3),) * 2, ((3, 2, 5, 2),) * 2, ((4, 3, 1, 1),) * 2)
DRAWN = (((2, 2, 2, 3),) * 2, ((3, 1, 3, 2),) * 2)
MISMATCHES = tuple(
    ("teacher", shapes)
    for shapes in [
        ((4, 3, 3, 5), (4, 3, 3, 1)),
        ((4, 3, 3, 5), (1, 3, 3, 5)),
        ((4, 3, 3, 5), (4, 6, 6, 5)),
        ((4, 3, 3, 5), (4, 3, 1, 5)),
    ]
)
RANKS = (("student", ((4, 10), (4, 10))), ("student", ((4, 8, 3), (4, 8, 3))))

ROWS = (
    Row(
        "heatmap_mse",
        "dense.pose",
        shapes=SHAPES,
        invariances={"shift of both": shift_both, "permuted joints": permute_last, "mirror": mirror},
        extremes=feature_extremes(MAPS),
        hand=(Hand(([[[[1.0, 2.0]]]], [[[[3.0, -1.0]]]]), [6.5], [[[[-2.0, 3.0]]]]),),
        mismatches=MISMATCHES,
        ranks=RANKS,
        drawn=DRAWN,
    ),
    Row(
        "joint_structure",
        "dense.pose",
        shapes=(*SHAPES[:2], ((4, 3, 2, 2),) * 2),
        rounding=1e-6,
        invariances={
            "scale": scale_each,
            "scale of each joint": scale_joints,
            "permuted joints": permute_last,
            "mirror": mirror,
        },
        extremes=feature_extremes(MAPS),
        hand=(
            # the two joints' maps are orthogonal for the student, the same for the teacher: 2 of 4 pairs
            Hand((np.array([[2.0, 0.0], [0.0, 3.0]]).reshape(1, 1, 2, 2), np.ones((1, 1, 2, 2))), [0.5], None),
            # at 45°: 2 · 1/2 / 4
            Hand(
                (
                    np.array([[2.0, 0.0], [0.0, 3.0]]).reshape(1, 2, 1, 2),
                    np.array([[1.0, 5.0], [0.0, 5.0]]).reshape(1, 2, 1, 2),
                ),
                [0.25],
                None,
            ),
        ),
        mismatches=MISMATCHES,
        ranks=RANKS,
        drawn=DRAWN,
    ),
)
