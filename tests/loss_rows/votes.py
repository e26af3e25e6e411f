"""Rows of `jaxkd.losses.relations.votes`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.loss_changes import Arrays, rotate, translate
from tests.loss_row import BATCHES, EMBEDDINGS, Hand, Row, feature_extremes, normal


def voted(loss: Callable[..., Any], student: Any, teachers: Any, **options: Any) -> Any:
    """Calls the loss with one teacher, or with the features as several teachers if there are weights."""
    count = len(options.get("weights", ["one"]))
    return loss(student, [teachers[:, m::count] for m in range(count)] if count > 1 else teachers, **options)


def stepped(rng: np.random.Generator, *shapes: tuple[int, ...]) -> Arrays:
    """Returns a student in steps of 0.4: margins of 1 and 0.5 are at least 0.02 from a kink."""
    student, teachers = normal(rng, *shapes)
    return 0.4 * np.round(student / 0.4), teachers


def scale_teachers(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Scales the teacher: only the order of its distances is used."""
    return arrays[0], arrays[1] * rng.uniform(0.1, 10)


def exact(arrays: Arrays) -> Arrays:
    """Clips to ±2, where squared distances are exact in float32, so that ties stay ties."""
    return tuple(np.clip(array, -2, 2) for array in arrays)


# Three teachers, a column each. To the first point and to the third, the second is the nearer one for two of them. To
# the second, one teacher has the first nearer, one the third, and to one they are equally far.
LINE = ([[0.0], [3.0], [1.0]], [[0.0, 0.0, 0.0], [1.0, 2.0, 5.0], [2.0, 5.0, 1.0]])

ROWS = (
    Row(
        "voted_dissimilarity",
        "relations.votes",
        shapes=(((6, 4), (6, 7)), ((7, 2, 2, 3), (7, 5)), ((5, 1), (5, 3)), ((2, 4), (2, 4))),
        make=stepped,
        # Of three teachers one is a majority by itself, and two tie with it but for the rounding of 0.1 + 0.2.
        hyper=({}, {"margin": 0.5, "weights": (3.0, 1.0, 1.0)}, {"weights": (0.1, 0.2, 0.3)}),
        call=voted,
        arguments=("student", "teachers"),
        invariances={"translation": translate, "rotation": rotate, "scale of the teachers": scale_teachers},
        extremes=feature_extremes(EMBEDDINGS),
        hand=(
            # hinges 9 - 1 + 1 of the first point, 4 - 1 + 1 of the third, each times 3 anchors by 2 triplets
            Hand(LINE, [13.5, 0.0, 6.0], [[-3.0], [15.0], [-12.0]], {"weights": (1.0, 1.0, 1.0)}),
            # the third teacher decides: 1 - 9 + 4 and 4 - 9 + 4 are negative, 1 - 4 + 4 is not; three triplets
            Hand(LINE, [0.0, 0.0, 1.0], [[-2.0], [-4.0], [6.0]], {"margin": 4.0, "weights": (1.0, 1.0, 3.0)}),
        ),
        identical_is_zero=False,
        relational=True,
        rounding=1e-6,
        mismatches=tuple(("teachers", shapes) for _, shapes in BATCHES),
        ranks=(("student", ((), ())), ("student", ((4,), (4, 3))), ("teachers", ((4, 3), (4,)))),
        drawn=(((5, 3), (5, 2)), ((5, 2),) * 2),
        valid=exact,
    ),
)
