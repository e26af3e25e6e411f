"""Rows of `jaxkd.losses.relations.ranks`."""

from typing import Any

import numpy as np

from tests.loss_changes import Arrays, rotate, translate
from tests.loss_row import BATCHES, EMBEDDINGS, Hand, Row, feature_extremes

# Five examples first: each is then on the list of all others, and its mask is heard by all.
SHAPES = (((5, 13), (5, 20)), ((7, 2, 2, 3), (7, 5)), ((9, 6), (9, 3)), ((5, 1), (5, 3)), ((2, 4), (2, 4)))
EXTREMES = {name: (student / 2, teacher / 2) for name, (student, teacher) in feature_extremes(EMBEDDINGS).items()}
DRAWN = (((6, 3), (6, 2)), ((5, 2),) * 2)
HYPER: tuple[dict[str, Any], ...] = ({}, {"alpha": 1.0, "beta": 1.0}, {"beta": 2.0, "list_size": 2})

# Distances 1, 3 and 2 to the student, 2, 1 and 1 to the teacher, whose lists are 2, 1 of the first point, 2, 0 of the
# second, and of the third the tie 0, 1.
LINE, TURNED = [[0.0], [1.0], [3.0]], [[0.0], [2.0], [1.0]]
PLAIN = {"alpha": 1.0, "beta": 1.0}


def small(rng: np.random.Generator, *shapes: tuple[int, ...]) -> Arrays:
    """Returns embeddings with distances below 1, as between unit vectors."""
    return tuple(0.3 * rng.normal(size=shape) / np.sqrt(np.prod(shape[1:])) for shape in shapes)


def order_preserving(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Scales the teacher, to which a ranking is invariant."""
    return arrays[0], arrays[1] * rng.uniform(0.1, 10)


def exact(arrays: Arrays) -> Arrays:
    """Clips to ±2, where squared distances are exact in float32, so that ties stay ties."""
    return tuple(np.clip(array, -2, 2) for array in arrays)


def bernoulli_kl(logit_t: float, logit_s: float) -> float:
    """Returns the KL between the orders of a list of two, whose logit is the difference of the scores."""
    p_t, p_s = (1 / (1 + np.exp(-logit)) for logit in (logit_t, logit_s))
    return p_t * np.log(p_t / p_s) + (1 - p_t) * np.log((1 - p_t) / (1 - p_s))


ROWS = (
    Row(
        "darkrank_hard",
        "relations.ranks",
        shapes=SHAPES,
        make=small,
        hyper=HYPER,
        invariances={"translation": translate, "rotation": rotate, "scale of the teacher": order_preserving},
        extremes=EXTREMES,
        hand=(
            Hand((LINE, LINE), [np.log1p(np.exp(-2)), np.log1p(np.exp(-1)), np.log1p(np.exp(-1))], None, PLAIN),
            Hand((LINE, TURNED), [np.log1p(np.exp(2)), np.log1p(np.exp(1)), np.log1p(np.exp(1))], None, PLAIN),
            # α (8 - 1) of the middle point
            Hand((LINE, TURNED), [np.log1p(np.exp(78)), np.log1p(np.exp(21)), np.log1p(np.exp(57))]),
        ),
        identical_is_zero=False,
        relational=True,
        rounding=2e-6,
        mismatches=BATCHES,
        ranks=(("student", ((), ())), ("teacher", ((4, 3), (4,)))),
        drawn=DRAWN,
        valid=exact,
    ),
    Row(
        "darkrank_soft",
        "relations.ranks",
        shapes=SHAPES,
        make=small,
        hyper=HYPER,
        invariances={"translation": translate, "rotation": rotate},
        extremes=EXTREMES,
        hand=(
            # the scores of each list of two, first less second
            Hand((LINE, TURNED), [bernoulli_kl(1, -2), bernoulli_kl(1, -1), bernoulli_kl(0, -1)], None, PLAIN),
            Hand((LINE, LINE), [0.0, 0.0, 0.0], np.zeros((3, 1)), PLAIN),
        ),
        relational=True,
        rounding=2e-6,
        mismatches=BATCHES,
        ranks=(("student", ((), ())), ("teacher", ((4, 3), (4,)))),
        drawn=DRAWN,
        valid=exact,
    ),
)
