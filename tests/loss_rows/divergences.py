"""Rows of `jaxkd.losses.divergences`."""

import numpy as np

from tests.loss_changes import Arrays, permutation, permute_last, shift_each
from tests.loss_row import SAME_LOGITS, Hand, Row, logit_extremes
from tests.references import log_softmax

EXTREMES = logit_extremes() | {
    "-inf classes in the student": tuple(logit_extremes()["-inf classes in the teacher"][::-1])
}


def top(teacher: np.ndarray, k: int) -> Arrays:
    """The largest log-probabilities of a teacher's logits, and whose they are."""
    indices = np.argsort(-teacher, axis=-1, kind="stable")[..., :k]
    return np.take_along_axis(log_softmax(teacher), indices, axis=-1), indices


def with_top(rng: np.random.Generator, student: tuple[int, ...], *kept: tuple[int, ...]) -> Arrays:
    return (rng.normal(size=student), *top(rng.normal(size=student), kept[0][-1]))


def agreeing(arrays: Arrays) -> Arrays:
    """A teacher of the student's own, whose tail is more than a rounding: where that is 0, log_probs have a kink."""
    student, _, indices = arrays
    student = student / max(1, np.abs(student).max(initial=0) / 3)
    return student, np.take_along_axis(log_softmax(student), indices, axis=-1), indices


def distinct(arrays: Arrays) -> Arrays:
    """No index twice, and no probability above 1."""
    student, log_probs, indices = arrays
    following = indices[..., :1] + np.arange(indices.shape[-1])
    return student, -np.abs(log_probs), (following % student.shape[-1]).astype(np.int32)


def shift_student(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    return (*shift_each(rng, arrays[:1]), *arrays[1:])


def rename_classes(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    student, log_probs, indices = arrays
    order = permutation(rng, student.shape[-1])
    return student[..., order], log_probs, np.argsort(order)[indices]


def reorder(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """The kept classes in another order."""
    student, *kept = arrays
    order = permutation(rng, kept[0].shape[-1])
    return (student, *(array[..., order] for array in kept))


ROWS = (
    Row(
        "skew_kl",
        "divergences",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 1),) * 2, ((5,),) * 2),
        hyper=({}, {"alpha": 0.0}, {"alpha": 0.5, "temperature": 2.0}, {"alpha": 1.0}),
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "permuted classes": permute_last},
        extremes=EXTREMES,
        hand=(
            # p_t = [3/4, 1/4], p_s = [1/2, 1/2], half of each = [5/8, 3/8]: slopes -p_t/2m = [-3/5, -1/3] of p_s
            Hand(
                ([[0.0, 0.0]], [[np.log(3), 0.0]]),
                [0.75 * np.log(6 / 5) + 0.25 * np.log(2 / 3)],
                [[-1 / 15, 1 / 15]],
                {"alpha": 0.5},
            ),
            # nothing in common: the bound, and the student cannot tell
            Hand(([[2e3, 0.0]], [[0.0, 2e3]]), [np.log(10)], [[0.0, 0.0]]),
        ),
        mismatches=SAME_LOGITS,
        ranks=(("student", ((), ())),),
        drawn=(((4, 5),) * 2, ((2, 3, 4),) * 2),
    ),
    Row(
        "skew_reverse_kl",
        "divergences",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 1),) * 2, ((5,),) * 2),
        hyper=({}, {"alpha": 0.0}, {"alpha": 0.5, "temperature": 2.0}, {"alpha": 1.0}),
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "permuted classes": permute_last},
        extremes=EXTREMES,
        hand=(
            # as above; slopes log(p_s/m) + 1 - p_s/2m = [log 4/5 + 3/5, log 4/3 + 1/3] of p_s
            Hand(
                ([[0.0, 0.0]], [[np.log(3), 0.0]]),
                [0.5 * np.log(4 / 5) + 0.5 * np.log(4 / 3)],
                [[(np.log(3 / 5) + 4 / 15) / 4, -(np.log(3 / 5) + 4 / 15) / 4]],
                {"alpha": 0.5},
            ),
            Hand(([[2e3, 0.0]], [[0.0, 2e3]]), [np.log(10)], [[0.0, 0.0]]),
        ),
        mismatches=SAME_LOGITS,
        ranks=(("student", ((), ())),),
        drawn=(((4, 5),) * 2, ((2, 3, 4),) * 2),
    ),
    Row(
        "top_k_kl",
        "divergences",
        shapes=(
            ((6, 10), (6, 4), (6, 4)),
            ((2, 3, 7), (2, 3, 2), (2, 3, 2)),
            ((4, 2), (4, 1), (4, 1)),
            ((5,), (3,), (3,)),
        ),
        make=with_top,
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_student, "renamed classes": rename_classes, "reordered": reorder},
        extremes={name: (student, *top(teacher, 3)) for name, (student, teacher) in EXTREMES.items()}
        | {
            "all of one class": (np.zeros((5, 6)), np.array([[0.0, -np.inf, -np.inf]] * 5), np.array([[3, 1, 0]] * 5)),
            "none of the classes": (np.zeros((5, 6)), np.full((5, 3), -np.inf), np.array([[3, 1, 0]] * 5)),
            "more than all": (np.zeros((5, 6)), np.full((5, 3), -1.0), np.array([[3, 1, 0]] * 5)),
        },
        hand=(
            # p_t = [5, 3]/10 and 2/10 in the tail, p_s = [2, 2, 3, 3]/10; the slope is p_s - p_t, the tail's p_t being
            # shared as p_s does
            Hand(
                (np.log([[0.2, 0.2, 0.3, 0.3]]), np.log([[0.5, 0.3]]), np.array([[0, 1]])),
                [0.5 * np.log(5 / 2) + 0.3 * np.log(3 / 2) + 0.2 * np.log(1 / 3)],
                [[-0.3, -0.1, 0.2, 0.2]],
            ),
        ),
        perfect=agreeing,
        mismatches=(
            *(
                ("log_probs", (student, kept, kept))
                for student, kept in [
                    ((4, 10), (1, 3)),
                    ((4, 10), (3, 3)),
                    ((4, 10), (4, 11)),
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
        ranks=(("student", ((), (3,), (3,))), ("log_probs", ((10,), (), ()))),
        drawn=(((4, 5), (4, 2), (4, 2)), ((2, 3, 4), (2, 3, 3), (2, 3, 3))),
        valid=distinct,
    ),
)
