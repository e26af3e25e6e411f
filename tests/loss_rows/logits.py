"""Rows of `jaxkd.losses.logits`."""

from collections.abc import Callable
from types import ModuleType

import numpy as np

from tests.loss_changes import permute_labelled, permute_last, permuted_result, shift_both, shift_each
from tests.loss_row import SAME_LOGITS, Hand, Row, labelled, logit_extremes, without


def standardized_kd(module: ModuleType) -> Callable:
    def loss(student, teacher, *, temperature):
        standardized = module.standardize_logits(student), module.standardize_logits(teacher)
        return module.soft_target_kl(*standardized, temperature=temperature)

    return loss


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
        rounding=1e-5,  # T² times that of the logarithms, whose difference is the loss
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "permuted classes": permute_last},
        extremes=logit_extremes(),
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
