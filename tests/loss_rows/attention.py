"""Rows of `jaxkd.losses.features.attention`."""

import numpy as np

from tests.loss_changes import flip_signs, mirror, permute_student_last, scale_each
from tests.loss_row import MAP_BATCHES, MAP_RANKS, MAPS, Hand, Row, feature_extremes

ROWS = (
    Row(
        "attention_transfer",
        "features.attention",
        shapes=(
            ((5, 3, 4, 2), (5, 3, 4, 3)),
            ((3, 7, 5, 2), (3, 4, 3, 4)),
            ((3, 4, 3, 2), (3, 7, 5, 1)),
            ((3, 5, 2, 2), (3, 3, 4, 2)),
            ((4, 1, 1, 3),) * 2,
        ),
        hyper=({}, {"p": 1}, {"p": 3}),
        invariances={
            "scale": scale_each,
            "signs": flip_signs,
            "permuted channels": permute_student_last,
            "mirror": mirror,
        },
        extremes=feature_extremes(MAPS),
        golden={f"attention_{stage}": lambda m: m.attention_transfer for stage in range(3)},
        hand=(
            # Q_s = [4, 3]/5 of squares, Q_t = [0, 1]: ((4/5)² + (2/5)²) / 2
            Hand((np.array([2.0, 3**0.5]).reshape(1, 1, 2, 1), np.array([0.0, 5.0]).reshape(1, 1, 2, 1)), [0.4], None),
            # the same of absolute values
            Hand(
                (np.array([4.0, -3.0]).reshape(1, 1, 2, 1), np.array([0.0, 5.0]).reshape(1, 1, 2, 1)),
                [0.4],
                None,
                {"p": 1},
            ),
        ),
        mismatches=MAP_BATCHES,
        ranks=MAP_RANKS,
        drawn=(((3, 3, 2, 2), (3, 2, 3, 1)), ((3, 2, 2, 2),) * 2),
    ),
)
