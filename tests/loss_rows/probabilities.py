"""Rows of `jaxkd.losses.probabilities`."""

import numpy as np

from tests.loss_changes import Arrays, permutation, permute_last, shift_each
from tests.loss_row import SAME_LOGITS, Hand, Row, logit_extremes


def permute_each(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Permutes the classes of each network by itself."""
    return tuple(array[..., permutation(rng, array.shape[-1])] for array in arrays)


EXTREMES = logit_extremes() | {
    "-inf classes in the student": tuple(logit_extremes()["-inf classes in the teacher"][::-1])
}

ROWS = (
    Row(
        "total_variation",
        "probabilities",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 2),) * 2, ((5,),) * 2),
        hyper=({}, {"temperature": 2.5}),
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "permuted classes": permute_last},
        extremes=EXTREMES,
        hand=(
            # p_t = [3/4, 1/4], p_s = [1/2, 1/2]: slopes [-1, 1]/2 of p_s
            Hand(([[0.0, 0.0]], [[np.log(3), 0.0]]), [0.25], [[-0.25, 0.25]]),
            # nothing in common: no token is accepted
            Hand(([[2e3, 0.0]], [[0.0, 2e3]]), [1.0], [[0.0, 0.0]]),
        ),
        mismatches=SAME_LOGITS,
        ranks=(("student", ((), ())),),
        drawn=(((4, 5),) * 2, ((2, 3, 4),) * 2),
    ),
    Row(
        "universal_logit_distance",
        "probabilities",
        shapes=(((6, 10), (6, 7)), ((2, 3, 7), (2, 3, 9)), ((4, 2),) * 2, ((5,), (3,))),
        hyper=({}, {"temperature": 2.5}),
        leading=lambda rank: rank - 1,
        rounding=1e-6,  # of the difference of two probabilities of one half
        invariances={"shift": shift_each, "permuted classes": permute_each},
        extremes=EXTREMES,
        hand=(
            # [3/4, 1/4, 0] and [1/2, 1/4, 1/4] in descending order: |1/4| + 0 + |-1/4|
            Hand(
                ([[0.0, np.log(3)]], [[0.0, np.log(2), 0.0]]),
                [0.5],
            ),
            # p_s = [3/4, 1/4], p_t = [1/2, 1/2]: slopes [1, -1] of p_s
            Hand(([[np.log(3), 0.0]], [[0.0, 0.0]]), [0.5], [[3 / 8, -3 / 8]]),
        ),
        mismatches=tuple(
            ("teacher", shapes)
            for shapes in [
                ((4, 10), (1, 10)),
                ((4, 10), (10,)),
                ((4, 10), (4, 1, 10)),
                ((4, 10), (3, 12)),
                ((2, 3, 10), (2, 1, 10)),
                ((2, 3, 10), (3, 10)),
            ]
        ),
        ranks=(("student", ((), ())),),
        drawn=(((4, 5),) * 2, ((2, 3, 4),) * 2),
    ),
)
