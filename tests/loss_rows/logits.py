"""Rows of `jaxkd.losses.logits`."""

from collections.abc import Callable
from types import ModuleType

import numpy as np

from tests.loss_changes import (
    Arrays,
    permutation,
    permute_labelled,
    permute_last,
    permuted_result,
    shift_both,
    shift_each,
)
from tests.loss_row import LOGITS, SAME_LOGITS, Hand, Row, labelled, logit_extremes, without

# KL([3/4, 1/4] ‖ [1/2, 1/2]), what most values derived by hand are made of
KL = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)

# What only the student excludes costs infinitely much, and what only the teacher excludes does in the reverse KL.
EXTREMES = logit_extremes() | {
    "-inf classes in the student": tuple(logit_extremes()["-inf classes in the teacher"][::-1])
}


def standardized_kd(module: ModuleType) -> Callable:
    def loss(student, teacher, *, temperature):
        standardized = module.standardize_logits(student), module.standardize_logits(teacher)
        return module.soft_target_kl(*standardized, temperature=temperature)

    return loss


def permute_classes(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Classes renamed, in both networks and in the labels."""
    *logits, labels = arrays
    order = permutation(rng, logits[0].shape[-1])
    return (*(array[..., order] for array in logits), np.argsort(order)[labels])


def with_labels(extremes: dict[str, Arrays]) -> dict[str, Arrays]:
    """A label of every kind: of the largest logit, of another, of one that both exclude."""
    return {name: (*arrays, np.arange(LOGITS[0])) for name, arrays in extremes.items()}


ROWS = (
    Row(
        "cross_entropy",
        "logits",
        shapes=(((6, 10), (6,)), ((2, 3, 7), (2, 3)), ((4, 1), (4,)), ((5,), ())),
        make=labelled,
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "renamed classes": permute_labelled},
        extremes={
            name: (student, np.arange(5) % 4 + 1)
            for name, (student, _) in logit_extremes().items()
            if "one class" not in name and "-inf" not in name
        }
        | {
            "-inf classes": (without(0, 5), np.arange(5) % 4 + 1),
            "one class left": (logit_extremes()["one class left"][0], np.full(5, 2)),
        },
        hand=(
            # softmax([0, log 3]) = [1/4, 3/4]
            Hand((np.array([[0.0, np.log(3)]]), np.array([1])), [np.log(4 / 3)], [[0.25, -0.25]]),
            Hand((np.array([[0.0, np.log(3)]]), np.array([0])), [np.log(4)], [[-0.75, 0.75]]),
        ),
        identical_is_zero=False,
        mismatches=tuple(
            ("labels", shapes)
            for shapes in [
                ((4, 10), (1,)),
                ((4, 10), (3,)),
                ((4, 10), ()),
                ((4, 10), (4, 1)),
                ((4, 10), (4, 10)),
                ((1, 10), (4,)),
                ((2, 3, 10), (3,)),
                ((2, 3, 10), (2,)),
                ((2, 3, 10), (2, 1)),
            ]
        ),
        ranks=(("logits", ((), ())),),
        drawn=(((4, 5), (4,)), ((2, 3, 4), (2, 3))),
    ),
    Row(
        "soft_target_kl",
        "logits",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 1),) * 2, ((5,),) * 2),
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
        "logits",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 1),) * 2, ((5,),) * 2),
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
        "logits",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 1),) * 2, ((5,),) * 2),
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
        "decoupled_kd",
        "logits",
        shapes=(
            ((6, 10), (6, 10), (6,)),
            ((2, 3, 7), (2, 3, 7), (2, 3)),
            ((5, 2), (5, 2), (5,)),
            ((4, 1), (4, 1), (4,)),
            ((5,), (5,), ()),
        ),
        make=labelled,
        hyper=({}, {"alpha": 2.0, "beta": 0.5, "temperature": 1.0}),
        rounding=1e-6,
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "renamed classes": permute_classes},
        extremes=with_labels(EXTREMES),
        golden={"dkd": lambda m: m.decoupled_kd},
        hand=(
            # two classes: nothing but the usual KL, of gradient T (p_s - p_t)
            Hand(
                (np.array([[0.0, 0.0]]), np.array([[2 * np.log(3), 0.0]]), np.array([0])),
                [4 * KL],
                [[-0.5, 0.5]],
                {"temperature": 2.0},
            ),
            # p_t = [2, 3, 1]/6: a third at the target, as in the student; the others are [3/4, 1/4] and [1/2, 1/2]
            Hand(
                (np.array([[0.0, 0.0, 0.0]]), np.array([[np.log(2), np.log(3), 0.0]]), np.array([0])),
                [8 * KL],
                [[0.0, -2.0, 2.0]],
                {"temperature": 1.0},
            ),
        ),
        mismatches=(
            *(("teacher", (student, teacher, student[:-1])) for _, (student, teacher) in SAME_LOGITS),
            *(
                ("labels", (logits, logits, labels))
                for logits, labels in [
                    ((4, 10), (1,)),
                    ((4, 10), (3,)),
                    ((4, 10), ()),
                    ((4, 10), (4, 1)),
                    ((4, 10), (4, 10)),
                    ((2, 3, 10), (3,)),
                ]
            ),
        ),
        ranks=(("student", ((), (), ())),),
        drawn=(((4, 5), (4, 5), (4,)), ((2, 3, 4), (2, 3, 4), (2, 3))),
    ),
    Row(
        "dist",
        "logits",
        shapes=(((6, 10),) * 2, ((7, 3),) * 2, ((5, 2),) * 2, ((4, 1),) * 2),
        hyper=({}, {"temperature": 4.0}, {"beta": 2.0, "gamma": 0.5}),
        rounding=1e-5,
        invariances={"shift": shift_each, "permuted classes": permute_last},
        extremes=EXTREMES,
        golden={"dist": lambda m: m.dist},
        hand=(
            # p = [[3, 1], [1, 3]]/4 and the opposite: every row and column is ±[1, -1]/4, of norm products 1/8
            Hand(
                (np.log([[3.0, 1.0], [1.0, 3.0]]), np.log([[1.0, 3.0], [3.0, 1.0]])),
                [2 * (1 + 0.125 / (0.125 + 1e-8))] * 2,
            ),
            # constant rows and columns correlate with nothing
            Hand((np.zeros((2, 2)), np.log([[1.0, 3.0], [3.0, 1.0]])), [2.0, 2.0]),
        ),
        identical_is_zero=False,  # 1e-8 in the denominator: nearly
        relational=True,
        needs_others=False,
        relation_shapes=lambda batch, features: ((batch, features), (batch, features)),
        mismatches=tuple((name, shapes) for name, shapes in SAME_LOGITS if len(shapes[0]) == 2),
        ranks=tuple(("student", (shape, shape)) for shape in [(), (4,), (2, 3, 4)]),
        drawn=(((4, 5),) * 2, ((5, 3),) * 2),
    ),
    Row(
        "logit_mse",
        "logits",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 1),) * 2, ((5,),) * 2),
        leading=lambda rank: rank - 1,
        invariances={"shift of both": shift_both, "permuted classes": permute_last},
        extremes={name: arrays for name, arrays in logit_extremes().items() if name != "-inf classes in the teacher"},
        hand=(Hand(([[1.0, 2.0]], [[3.0, -1.0]]), [6.5], [[-2.0, 3.0]]),),
        mismatches=SAME_LOGITS,
        ranks=(("student", ((), ())),),
        drawn=(((4, 5),) * 2, ((2, 3, 4),) * 2),
    ),
    Row(
        "standardize_logits",
        "logits",
        shapes=(((6, 10),), ((2, 3, 7),), ((4, 1),), ((5,),)),
        leading=lambda rank: rank,
        invariances={"shift": shift_each},
        mapped={"permuted classes": permuted_result},
        extremes={name: (student,) for name, (student, _) in logit_extremes().items()},
        golden={"logit_standardised_kd": standardized_kd},
        # mean 3, squared deviations 4 + 0 + 4 over ddof = 1: std 2
        hand=(Hand(([[1.0, 3.0, 5.0]],), [[-1 / (1 + 5e-8), 0.0, 1 / (1 + 5e-8)]], None),),
        identical_is_zero=False,
        per_example=False,
        ranks=(("logits", ((),)),),
        drawn=(((4, 5),), ((2, 3, 4),)),
    ),
)
