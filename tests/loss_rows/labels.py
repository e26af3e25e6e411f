"""Rows of `jaxkd.losses.labels`."""

import numpy as np

from tests.loss_changes import Arrays, permute_labeled, permute_last, shift_each
from tests.loss_row import LOGITS, SAME_LOGITS, Hand, Row, labeled, logit_extremes, without

# KL([3/4, 1/4] ‖ [1/2, 1/2])
KL = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)


def with_probabilities(rng: np.random.Generator, logits: tuple[int, ...], targets: tuple[int, ...]) -> Arrays:
    return rng.normal(size=logits), rng.dirichlet(np.ones(targets[-1]), size=targets[:-1])


def shift_logits(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    return (*shift_each(rng, arrays[:1]), *arrays[1:])


def target_extremes() -> dict[str, Arrays]:
    """Returns targets that are 0 where the logits are -inf and elsewhere, and all-zero targets."""
    (usual, some), certain = with_probabilities(np.random.default_rng(1), LOGITS, LOGITS), np.eye(6)[:5]
    allowed = some * ~np.isinf(without(0, 4))
    return {name: (logits, some) for name, (logits, _) in logit_extremes().items() if "inf" not in name} | {
        "certain": (usual, certain),
        "certain and ±1e4": (logit_extremes()["student ±1e4"][0], certain),
        "-inf classes of target 0": (without(0, 4), allowed),
        "-inf classes of other targets": (without(0, 4), some),
        "one class left": (logit_extremes()["one class left"][0], np.eye(6)[[2] * 5]),
        "targets of 0": (usual, np.zeros(LOGITS)),
    }


def label_extremes() -> dict[str, Arrays]:
    """Returns labels, excluded classes among them: an infinite value with a finite gradient."""
    return {name: (logits, np.arange(5)) for name, (logits, _) in logit_extremes().items()}


LABELS = tuple(
    ("labels", shapes)
    for shapes in [
        ((4, 10), (1,)),
        ((4, 10), (3,)),
        ((4, 10), ()),
        ((4, 10), (4, 1)),
        ((4, 10), (4, 10)),
        ((1, 10), (4,)),
        ((2, 3, 10), (3,)),
        ((2, 3, 10), (2, 1)),
    ]
)

ROWS = (
    Row(
        "cross_entropy",
        "labels",
        shapes=(((6, 10), (6,)), ((2, 3, 7), (2, 3)), ((4, 2), (4,)), ((5,), ())),
        make=labeled,
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "renamed classes": permute_labeled},
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
        "soft_cross_entropy",
        "labels",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 2),) * 2, ((5,),) * 2),
        make=with_probabilities,
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_logits, "permuted classes": permute_last},
        extremes=target_extremes(),
        hand=(
            # softmax([0, log 3]) = [1/4, 3/4]; the gradient is p - q
            Hand(([[0.0, np.log(3)]], [[0.5, 0.5]]), [np.log(4) / 2 + np.log(4 / 3) / 2], [[-0.25, 0.25]]),
            # half the weight
            Hand(([[0.0, np.log(3)]], [[0.0, 0.5]]), [np.log(4 / 3) / 2], [[0.125, -0.125]]),
        ),
        identical_is_zero=False,
        mismatches=tuple(("targets", shapes) for _, shapes in SAME_LOGITS),
        ranks=(("logits", ((), ())),),
        drawn=(((4, 5),) * 2, ((2, 3, 4),) * 2),
    ),
    Row(
        "label_smoothing",
        "labels",
        shapes=(((6, 10), (6,)), ((2, 3, 7), (2, 3)), ((4, 2), (4,)), ((5,), ())),
        make=labeled,
        hyper=({}, {"smoothing": 0.0}, {"smoothing": 1.0}),
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "renamed classes": permute_labeled},
        extremes=label_extremes(),
        hand=(
            # p = [1/4, 3/4], q = [1/20, 19/20]; the gradient is p - q
            Hand(
                (np.array([[0.0, np.log(3)]]), np.array([1])),
                [0.05 * np.log(4) + 0.95 * np.log(4 / 3)],
                [[0.2, -0.2]],
            ),
        ),
        identical_is_zero=False,
        mismatches=LABELS,
        ranks=(("logits", ((), ())),),
        drawn=(((4, 5), (4,)), ((2, 3, 4), (2, 3))),
    ),
    Row(
        "virtual_teacher_kl",
        "labels",
        shapes=(((6, 10), (6,)), ((2, 3, 7), (2, 3)), ((4, 2), (4,)), ((5,), ())),
        make=labeled,
        hyper=({}, {"correct": 0.9, "temperature": 1.0}, {"correct": 1.0, "temperature": 4.0}),
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "renamed classes": permute_labeled},
        extremes=label_extremes(),
        hand=(
            Hand((np.array([[0.0, 0.0]]), np.array([0])), [KL], [[-0.25, 0.25]], {"correct": 0.75, "temperature": 1.0}),
            # [9, 1]/10 at T = 2: √9 to √1
            Hand(
                (np.array([[0.0, 0.0]]), np.array([0])), [4 * KL], [[-0.5, 0.5]], {"correct": 0.9, "temperature": 2.0}
            ),
        ),
        identical_is_zero=False,
        mismatches=LABELS,
        ranks=(("logits", ((), ())),),
        drawn=(((4, 5), (4,)), ((2, 3, 4), (2, 3))),
    ),
)
