"""Rows of `jaxkd.losses.relations.similarities`."""

import numpy as np

from tests.loss_changes import Arrays, permute_last, rotate, scale_each, shift_both
from tests.loss_row import BATCHES, EMBEDDINGS, Hand, Row, feature_extremes

FREE = (((6, 13), (6, 21)), ((7, 2, 2, 3), (7, 5)), ((5, 1), (5, 3)), ((2, 4), (2, 4)))
DRAWN = (((4, 3), (4, 2)), ((5, 2),) * 2)

APART, ALIKE = [[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]]


def stretch(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Scales every embedding by its own positive factor."""
    return tuple(array * rng.uniform(0.1, 10, size=(len(array), 1)) for array in arrays)


def exchange(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Exchanges student and teacher."""
    return arrays[1], arrays[0]


ROWS = (
    Row(
        "similarity_preserving",
        "relations.similarities",
        shapes=FREE,
        invariances={"rotation": rotate, "scale": scale_each},
        extremes=feature_extremes(EMBEDDINGS),
        golden={"similarity_preserving": lambda m: m.similarity_preserving},
        # rows [1, 0] and [1, 1]/√2
        hand=(Hand((APART, ALIKE), [1 - 0.5**0.5] * 2),),
        relational=True,
        rounding=1e-6,
        mismatches=BATCHES,
        ranks=(("student", ((), ())), ("teacher", ((4, 3), (4,)))),
        drawn=DRAWN,
    ),
    Row(
        "correlation_congruence",
        "relations.similarities",
        shapes=FREE,
        hyper=({}, {"gamma": 0.1, "order": 1}, {"order": 4}),
        invariances={"rotation": rotate, "lengths": stretch},
        extremes=feature_extremes(EMBEDDINGS),
        # inner products of the pair 0 and 1; 1 + 2γ + (2γ)²/2 is 1 + 1.12
        hand=(
            Hand((APART, ALIKE), [(1.12 * np.exp(-0.8)) ** 2 / 2] * 2),
            Hand((APART, ALIKE), [(1.0 * np.exp(-1.0)) ** 2 / 2] * 2, None, {"gamma": 0.5, "order": 1}),
        ),
        relational=True,
        needs_others=False,  # but for a rounding: the length of a unit vector is 1 to the last digit but one
        rounding=1e-6,
        mismatches=BATCHES,
        ranks=(("student", ((), ())), ("teacher", ((4, 3), (4,)))),
        drawn=DRAWN,
    ),
    Row(
        "consecutive_correlation",
        "relations.similarities",
        shapes=(((6, 13),) * 2, ((7, 2, 2, 3),) * 2, ((5, 1),) * 2, ((2, 4),) * 2),
        invariances={"shift of both": shift_both, "permuted features": permute_last, "exchange": exchange},
        extremes=feature_extremes(EMBEDDINGS),
        golden={"correlation": lambda m: m.consecutive_correlation},
        hand=(
            # errors (1, 2), (3, 1), (1, 1): products 5 and 4, by 3/2
            Hand(
                ([[1.0, 2.0], [3.0, 1.0], [-1.0, 1.0]], np.zeros((3, 2))),
                [7.5, 6.0, 0.0],
                [[4.5, 1.5], [3.0, 4.5], [-4.5, 1.5]],
            ),
        ),
        relational=True,
        relation_shapes=lambda batch, features: ((batch, features),) * 2,
        ordered=True,
        mismatches=(
            *BATCHES,
            *(("teacher", shapes) for shapes in [((4, 8), (4, 1)), ((4, 1), (4, 8)), ((4, 2, 3), (4, 6))]),
        ),
        ranks=(("student", ((), ())), ("teacher", ((4, 3), (4,)))),
        drawn=(((4, 3),) * 2, ((5, 2),) * 2),
    ),
    Row(
        "probabilistic_transfer",
        "relations.similarities",
        shapes=(((6, 13), (6, 21)), ((7, 2, 2, 3), (7, 5)), ((5, 2), (5, 3)), ((2, 4), (2, 4))),
        hyper=({}, {"epsilon": 1e-6}),
        invariances={"rotation": rotate},
        # Of opposite vectors the probability is 0, and in float32 its rounding as large as what stands beside it in the
        # logarithm: "one position" has many of them.
        extremes={name: arrays for name, arrays in feature_extremes(EMBEDDINGS).items() if name != "one position"},
        golden={"pkt": lambda m: m.probabilistic_transfer},
        relational=True,
        needs_others=False,  # but for a rounding: a probability of x / x is 1, its slope the difference of two
        rounding=1e-6,
        mismatches=BATCHES,
        ranks=(("student", ((), ())), ("teacher", ((4, 3), (4,)))),
        drawn=DRAWN,
    ),
)
