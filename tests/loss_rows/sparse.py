"""Rows of `jaxkd.losses.sparse`."""

import numpy as np

from tests.loss_changes import Arrays
from tests.loss_row import LOGITS, Hand, Row, logit_extremes, without
from tests.loss_rows.kl import rename_classes, reorder, shift_student


def with_draws(rng: np.random.Generator, student: tuple[int, ...], *drawn: tuple[int, ...]) -> Arrays:
    """Returns logits, positive weights, and classes with repetitions."""
    return (
        rng.normal(size=student),
        rng.dirichlet(np.ones(drawn[0][-1]), size=drawn[0][:-1]),
        classes(rng, student, drawn[0]),
    )


def classes(rng: np.random.Generator, student: tuple[int, ...], drawn: tuple[int, ...]) -> np.ndarray:
    return rng.integers(0, student[-1], size=drawn)


def inside(arrays: Arrays) -> Arrays:
    """Makes the indices classes."""
    student, weights, indices = arrays
    return student, weights, (np.abs(indices) % student.shape[-1]).astype(np.int32)


USUAL = with_draws(np.random.default_rng(2), LOGITS, (5, 3), (5, 3))

ROWS = (
    Row(
        "sparse_cross_entropy",
        "sparse",
        shapes=(
            ((6, 10), (6, 4), (6, 4)),
            ((2, 3, 7), (2, 3, 2), (2, 3, 2)),
            ((4, 2), (4, 5), (4, 5)),
            ((5,), (3,), (3,)),
        ),
        make=with_draws,
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_student, "renamed classes": rename_classes, "reordered": reorder},
        extremes={
            name: (student, *USUAL[1:])
            for name, (student, _) in logit_extremes().items()
            if "inf" not in name and "one class" not in name
        }
        | {
            "-inf classes": (without(0, 4), USUAL[1], USUAL[2] % 3 + 1),
            "-inf classes with a weight": (without(0, 4), USUAL[1], 0 * USUAL[2]),
            "one class left": (logit_extremes()["one class left"][0], USUAL[1], 0 * USUAL[2] + 2),
            "weights of 0": (USUAL[0], 0 * USUAL[1], USUAL[2]),
            "padding": (USUAL[0], USUAL[1] * [1, 1, 0], USUAL[2] * [1, 1, 0] - [0, 0, 1]),
        },
        hand=(
            # p = [1/4, 3/4], q = [1/2, 1/2] of three entries; the gradient is p - q
            Hand(
                (np.array([[0.0, np.log(3)]]), np.array([[0.25, 0.5, 0.25]]), np.array([[0, 1, 0]])),
                [np.log(4) / 2 + np.log(4 / 3) / 2],
                [[-0.25, 0.25]],
            ),
        ),
        identical_is_zero=False,
        mismatches=(
            *(
                ("weights", (student, kept, kept))
                for student, kept in [
                    ((4, 10), (1, 3)),
                    ((4, 10), (3, 3)),
                    ((4, 10), (4, 0)),
                    ((4, 10), (3,)),
                    ((4, 10), (4, 1, 3)),
                    ((2, 3, 10), (3, 5)),
                    ((2, 3, 10), (2, 1, 5)),
                ]
            ),
            *(
                ("indices", ((4, 10), (4, 3), indices))
                for indices in [(4,), (3,), (4, 1), (1, 3), (4, 2), (4, 3, 1), (3, 3)]
            ),
        ),
        ranks=(("student", ((), (3,), (3,))), ("weights", ((10,), (), ()))),
        drawn=(((4, 5), (4, 2), (4, 2)), ((2, 3, 4), (2, 3, 3), (2, 3, 3))),
        valid=inside,
    ),
)
