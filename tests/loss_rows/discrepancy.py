"""Rows of `jaxkd.losses.relations.discrepancy`."""

import numpy as np

from tests.loss_changes import Arrays, permutation, permute_last, shift_both
from tests.loss_row import BATCHES, EMBEDDINGS, Hand, Row, feature_extremes


def permute_each(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Permutes the examples of each batch on its own: distributions are compared, not pairs."""
    return tuple(array[permutation(rng, len(array))] for array in arrays)


def move_both(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Rotates and shifts all examples of both networks alike."""
    matrix = np.linalg.qr(rng.normal(size=(arrays[0].shape[-1],) * 2))[0]
    vector = 3 * rng.normal(size=arrays[0].shape[1:])
    return tuple(array @ matrix + vector for array in arrays)


ROWS = (
    Row(
        "mean_discrepancy",
        "relations.discrepancy",
        shapes=(((6, 13),) * 2, ((7, 2, 2, 3),) * 2, ((5, 1),) * 2, ((2, 4),) * 2),
        invariances={
            "order of each batch": permute_each,
            "exchange": lambda rng, arrays: (arrays[1], arrays[0]),
            "shift of both": shift_both,
            "motion of both": move_both,
            "permuted features": permute_last,
        },
        extremes=feature_extremes(EMBEDDINGS),
        hand=(
            # means [2, 2] and [0, 1/2]; the gradient of both values is 2 (m_s - m_t) for each example
            Hand(([[1.0, 4.0], [3.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]), [6.25, 6.25], [[4.0, 3.0], [4.0, 3.0]]),
        ),
        relational=True,
        needs_others=False,  # one example is a mean too
        relation_shapes=lambda batch, features: ((batch, features),) * 2,
        # All examples have one value, in which no order would show: "order of each batch" says more.
        ordered=True,
        mismatches=(
            *BATCHES,
            *(("teacher", shapes) for shapes in [((4, 8), (4, 1)), ((4, 1), (4, 8)), ((4, 2, 3), (4, 6))]),
        ),
        ranks=(("student", ((), ())), ("student", ((4,), (4,))), ("teacher", ((4, 3), (4,)))),
        drawn=(((4, 3),) * 2, ((5, 2),) * 2),
    ),
)
