"""Rows of `jaxkd.losses.features.activations`."""

import numpy as np

from tests.loss_changes import mirror, permute_last, shift_both
from tests.loss_row import BATCHES, MAPS, Hand, Row, feature_extremes

ROWS = (
    Row(
        "hint_mse",
        "features.activations",
        shapes=(
            ((5, 3, 4, 2),) * 2,
            ((3, 7, 5, 2), (3, 4, 3, 2)),
            ((3, 4, 3, 2), (3, 7, 5, 2)),
            ((3, 5, 2, 2), (3, 3, 4, 2)),
            ((4, 5, 3),) * 2,
            ((4, 7),) * 2,
        ),
        invariances={"shift of both": shift_both, "permuted channels": permute_last, "mirror": mirror},
        extremes=feature_extremes(MAPS),
        golden={"hint": lambda m: m.hint_mse},
        hand=(
            Hand(([[1.0, 2.0]], [[3.0, -1.0]]), [6.5], [[-2.0, 3.0]]),
            # five rows pooled to two: windows 0-2 and 2-4, the third row is in both
            Hand(
                (np.arange(5.0).reshape(1, 5, 1, 1), np.zeros((1, 2, 1, 1))),
                [(1 + 9) / 2],
                np.array([1, 1, 4, 3, 3]).reshape(1, 5, 1, 1) / 3,
            ),
        ),
        mismatches=tuple(
            ("teacher", shapes)
            for shapes in [
                *(shapes for _, shapes in BATCHES),
                ((4, 8, 8, 3), (4, 8, 8, 1)),
                ((4, 8, 8, 1), (4, 8, 8, 3)),
                ((4, 8, 8, 3), (1, 8, 8, 3)),
                ((4, 8, 8, 3), (4, 8, 8)),
                ((4, 8), (4, 1)),
                ((4, 8), (4,)),
                ((4, 5, 8), (4, 1, 8)),
                ((4, 5, 8), (4, 7, 8)),
            ]
        ),
        ranks=(("student", ((4,), (4,))),),
        drawn=(((3, 3, 2, 2), (3, 2, 3, 2)), ((4, 3),) * 2),
    ),
)
