"""Rows of `jaxkd.losses.binary`."""

import numpy as np

from tests.loss_changes import Arrays, permute_last
from tests.loss_row import SAME_LOGITS, Hand, Row, logit_extremes

# KL([3/4, 1/4] ‖ [1/2, 1/2])
KL = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)


def with_labels(rng: np.random.Generator, logits: tuple[int, ...], labels: tuple[int, ...]) -> Arrays:
    """Returns logits and labels, some of them on or off, the others probabilities."""
    some = rng.uniform(size=labels)
    return rng.normal(size=logits), np.where(some < 0.3, 0.0, np.where(some > 0.7, 1.0, some))


def other_outcome(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Exchanges on and off."""
    logits, labels = arrays
    return -logits, 1 - labels


def negate(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    student, teacher = arrays
    return -student, -teacher


def label_extremes() -> dict[str, Arrays]:
    labels = (np.arange(30).reshape(5, 6) % 3) / 2
    certain = np.where(labels == 0, -np.inf, np.where(labels == 1, np.inf, 0.5))
    extremes: dict[str, Arrays] = {name: (logits, labels) for name, (logits, _) in logit_extremes().items()}
    return extremes | {"certain and right": (certain, labels), "certain and wrong": (-certain, labels)}


def kl_extremes() -> dict[str, Arrays]:
    extremes = logit_extremes()
    usual, excluded = extremes["-inf classes in the teacher"]
    return extremes | {
        "-inf labels in the student": (excluded, usual),
        "inf labels in both": (-excluded, -excluded),
        "inf labels in the teacher": (usual, -excluded),
        "opposite certain labels": (excluded, -excluded),
    }


SHAPES = (((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 1),) * 2, ((5,),) * 2)
DRAWN = (((4, 5),) * 2, ((2, 3, 1),) * 2)

ROWS = (
    Row(
        "binary_cross_entropy",
        "binary",
        shapes=SHAPES,
        make=with_labels,
        constant=(1,),
        leading=lambda rank: max(rank - 1, 1),
        invariances={"permuted labels": permute_last, "the other outcome": other_outcome},
        extremes=label_extremes(),
        hand=(
            # σ(log 3) = 3/4; the gradient is σ - y
            Hand((np.array([[np.log(3), np.log(3)]]), np.array([[1.0, 0.0]])), [np.log(16 / 3)], [[-0.25, 0.75]]),
            Hand((np.array([0.0, np.log(3)]), np.array([1.0, 0.5])), [np.log(2), np.log(16 / 3) / 2], [-0.5, 0.25]),
        ),
        identical_is_zero=False,
        mismatches=tuple(("labels", shapes) for _, shapes in SAME_LOGITS),
        ranks=(("logits", ((), ())),),
        drawn=DRAWN,
    ),
    Row(
        "binary_kl",
        "binary",
        shapes=SHAPES,
        hyper=({}, {"temperature": 1.0}, {"temperature": 0.5}),
        rounding=1e-6,
        leading=lambda rank: max(rank - 1, 1),
        invariances={"permuted labels": permute_last, "the other outcome": negate},
        extremes=kl_extremes(),
        hand=(
            # p_t = 3/4, p_s = 1/2, for one of two labels; the gradient is T (p_s - p_t)
            Hand(([[0.0, 1.0]], [[np.log(3), 1.0]]), [KL], [[-0.25, 0.0]], {"temperature": 1.0}),
            Hand(([0.0, 0.0], [2 * np.log(3), 0.0]), [4 * KL, 0.0], [-0.5, 0.0], {"temperature": 2.0}),
        ),
        mismatches=SAME_LOGITS,
        ranks=(("student", ((), ())),),
        drawn=DRAWN,
    ),
)
