"""Rows of `jaxkd.losses.logits`."""

from collections.abc import Callable
from types import ModuleType

import numpy as np

from tests.loss_changes import (
    Arrays,
    permutation,
    permute_last,
    permuted_result,
    shift_both,
    shift_each,
)
from tests.loss_row import LOGITS, SAME_LOGITS, Hand, Row, labeled, logit_extremes
from tests.loss_rows.kl import EXTREMES, KL


def standardized_kd(module: ModuleType) -> Callable:
    def loss(student, teacher, *, temperature):
        standardized = module.standardize_logits(student), module.standardize_logits(teacher)
        return module.soft_target_kl(*standardized, temperature=temperature)

    return loss


def permute_classes(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Renames the classes in both networks and in the labels."""
    *logits, labels = arrays
    order = permutation(rng, logits[0].shape[-1])
    return (*(array[..., order] for array in logits), np.argsort(order)[labels])


def with_labels(extremes: dict[str, Arrays]) -> dict[str, Arrays]:
    """Adds labels: the class of the largest logit, another, one that both networks exclude."""
    return {name: (*arrays, np.arange(LOGITS[0])) for name, arrays in extremes.items()}


ROWS = (
    Row(
        "decoupled_kd",
        "logits",
        shapes=(
            ((6, 10), (6, 10), (6,)),
            ((2, 3, 7), (2, 3, 7), (2, 3)),
            ((5, 2), (5, 2), (5,)),
            ((5,), (5,), ()),
        ),
        make=labeled,
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
        shapes=(((6, 10),) * 2, ((7, 3),) * 2, ((5, 2),) * 2),
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
        extremes=logit_extremes(),
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
