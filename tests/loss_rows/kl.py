"""Rows of `jaxkd.losses.kl`."""

import numpy as np

from tests.loss_changes import Arrays, permutation, permute_last, shift_each
from tests.loss_row import SAME_LOGITS, Hand, Row, logit_extremes
from tests.references import log_softmax

# KL([3/4, 1/4] ‖ [1/2, 1/2]), which most values derived by hand contain
KL = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)

# A class that only the student excludes makes the KL infinite, one that only the teacher excludes the reverse KL.
EXTREMES = logit_extremes() | {
    "-inf classes in the student": tuple(logit_extremes()["-inf classes in the teacher"][::-1])
}


def top(teacher: np.ndarray, k: int) -> Arrays:
    """Returns the largest log-probabilities of a teacher's logits, and their classes."""
    indices = np.argsort(-teacher, axis=-1, kind="stable")[..., :k]
    return np.take_along_axis(log_softmax(teacher), indices, axis=-1), indices


def with_top(rng: np.random.Generator, student: tuple[int, ...], *kept: tuple[int, ...]) -> Arrays:
    return (rng.normal(size=student), *top(rng.normal(size=student), kept[0][-1]))


def agreeing(arrays: Arrays) -> Arrays:
    """Makes the student its own teacher, with a tail well above 0, where the loss has a kink."""
    student, _, indices = arrays
    student = student / max(1, np.abs(student).max(initial=0) / 3)
    return student, np.take_along_axis(log_softmax(student), indices, axis=-1), indices


def distinct(arrays: Arrays) -> Arrays:
    """Makes the indices distinct and the probabilities at most 1."""
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
    """Permutes the kept classes."""
    student, *kept = arrays
    order = permutation(rng, kept[0].shape[-1])
    return (student, *(array[..., order] for array in kept))


ROWS = (
    Row(
        "soft_target_kl",
        "kl",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 2),) * 2, ((5,),) * 2),
        hyper=({}, {"temperature": 1.0}, {"temperature": 0.5}),
        rounding=2e-5,  # of the teacher's gradient: p (log p_t/p_s - KL), the two of a hundred each at T = 0.5
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "permuted classes": permute_last},
        extremes=EXTREMES,
        golden={"kd_T1": lambda m: m.soft_target_kl, "kd_T4": lambda m: m.soft_target_kl},
        hand=(
            # p_t = [3/4, 1/4], p_s = [1/2, 1/2]; the gradient is T (p_s - p_t)
            Hand(
                ([[0.0, 0.0]], [[np.log(3), 0.0]]),
                [0.75 * np.log(1.5) + 0.25 * np.log(0.5)],
                [[-0.25, 0.25]],
                {"temperature": 1.0},
            ),
            Hand(
                ([[0.0, 0.0]], [[2 * np.log(3), 0.0]]),
                [4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))],
                [[-0.5, 0.5]],
                {"temperature": 2.0},
            ),
        ),
        mismatches=SAME_LOGITS,
        ranks=(("student", ((), ())),),
        drawn=(((4, 5),) * 2, ((2, 3, 4),) * 2),
    ),
    Row(
        "reverse_kl",
        "kl",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 2),) * 2, ((5,),) * 2),
        hyper=({}, {"temperature": 4.0}),
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "permuted classes": permute_last},
        extremes=EXTREMES,
        hand=(
            # p_s = [3/4, 1/4], p_t = [1/2, 1/2]; the gradient is p_s (log p_s/p_t - KL)
            Hand(([[np.log(3), 0.0]], [[0.0, 0.0]]), [KL], [[3 / 16 * np.log(3), -3 / 16 * np.log(3)]]),
            Hand(
                ([[2 * np.log(3), 0.0]], [[0.0, 0.0]]),
                [4 * KL],
                [[3 / 8 * np.log(3), -3 / 8 * np.log(3)]],
                {"temperature": 2.0},
            ),
        ),
        mismatches=SAME_LOGITS,
        ranks=(("student", ((), ())),),
        drawn=(((4, 5),) * 2, ((2, 3, 4),) * 2),
    ),
    Row(
        "generalized_jsd",
        "kl",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 2),) * 2, ((5,),) * 2),
        hyper=({}, {"beta": 0.0}, {"beta": 1.0}, {"beta": 0.1}, {"beta": 0.9, "temperature": 2.0}),
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "permuted classes": permute_last},
        extremes=EXTREMES,
        golden={f"jsd_beta{beta}": lambda m: m.generalized_jsd for beta in ("0.0", "0.1", "0.5", "1.0")},
        hand=(
            # p_t = [3/4, 1/4], p_s = [1/2, 1/2], m = [5/8, 3/8]
            Hand(
                ([[0.0, 0.0]], [[np.log(3), 0.0]]),
                [(0.75 * np.log(6 / 5) + 0.25 * np.log(2 / 3) + 0.5 * np.log(4 / 5) + 0.5 * np.log(4 / 3)) / 2],
            ),
            Hand(([[0.0, 0.0]], [[np.log(3), 0.0]]), [KL], [[-0.25, 0.25]], {"beta": 0.0}),
            # nothing in common: the entropy of (β, 1 - β), and the student cannot tell
            Hand(
                ([[2e3, 0.0]], [[0.0, 2e3]]),
                [-0.1 * np.log(0.1) - 0.9 * np.log(0.9)],
                [[0.0, 0.0]],
                {"beta": 0.1},
            ),
        ),
        mismatches=SAME_LOGITS,
        ranks=(("student", ((), ())),),
        drawn=(((4, 5),) * 2, ((2, 3, 4),) * 2),
    ),
    Row(
        "skew_kl",
        "kl",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 2),) * 2, ((5,),) * 2),
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
        "kl",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 2),) * 2, ((5,),) * 2),
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
        "kl",
        shapes=(
            ((6, 10), (6, 4), (6, 4)),
            ((2, 3, 7), (2, 3, 2), (2, 3, 2)),
            ((4, 2), (4, 1), (4, 1)),
            ((5,), (3,), (3,)),
        ),
        make=with_top,
        hyper=({}, {"temperature": 2.5}),
        perfect_hyper=({},),  # the targets are those of T = 1
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_student, "renamed classes": rename_classes, "reordered": reorder},
        extremes={name: (student, *top(teacher, 3)) for name, (student, teacher) in EXTREMES.items()}
        | {
            "all of one class": (np.zeros((5, 6)), np.array([[0.0, -np.inf, -np.inf]] * 5), np.array([[3, 1, 0]] * 5)),
            "none of the classes": (np.zeros((5, 6)), np.full((5, 3), -np.inf), np.array([[3, 1, 0]] * 5)),
            "a class twice": (
                np.zeros((5, 6)),
                np.array([[np.log(0.5), -np.inf, np.log(0.5)]] * 5),
                np.array([[3] * 3] * 5),
            ),
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
