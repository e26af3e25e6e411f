"""Rows of `jaxkd.losses.rankings`."""

import numpy as np

from tests.loss_changes import Arrays, permutation, shift_each
from tests.loss_row import SAME_LOGITS, Hand, Row, feature_extremes


def permute_negatives(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    order = np.array([0, *(1 + permutation(rng, arrays[0].shape[-1] - 1))])
    return tuple(array[..., order] for array in arrays)


ROWS = (
    Row(
        "margin_mse",
        "rankings",
        shapes=(((6, 4),) * 2, ((2, 3, 3),) * 2, ((4, 2),) * 2, ((5,),) * 2),
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "permuted negatives": permute_negatives},
        extremes=feature_extremes((5, 4)),
        hand=(
            # margins 2 and 1 against 5 and 1: (9 + 0) / 2
            Hand(([[3.0, 1.0, 2.0]], [[10.0, 5.0, 9.0]]), [4.5], [[-3.0, 3.0, 0.0]]),
        ),
        mismatches=SAME_LOGITS,
        ranks=(("student", ((), ())),),
        drawn=(((4, 5),) * 2, ((2, 3, 4),) * 2),
    ),
)
