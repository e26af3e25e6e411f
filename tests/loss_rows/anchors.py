"""Rows of `jaxkd.losses.dense.anchors`."""

import numpy as np

from tests.loss_changes import Arrays, permute_last
from tests.loss_row import SAME_LOGITS, Hand, Row, feature_extremes, logit_extremes


def with_labels(rng: np.random.Generator, logits: tuple[int, ...], labels: tuple[int, ...]) -> Arrays:
    """Returns logits and labels, on or off, of which some rows are all off."""
    return rng.normal(size=logits), (rng.uniform(size=labels) < 0.3).astype(float)


def translate(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    vector = rng.normal(size=arrays[0].shape)
    return tuple(array + vector for array in arrays)


def label_extremes() -> dict[str, Arrays]:
    labels = (np.arange(30).reshape(5, 6) % 3 == 0).astype(float)
    certain = np.where(labels == 0, -np.inf, np.inf)
    extremes: dict[str, Arrays] = {name: (logits, labels) for name, (logits, _) in logit_extremes().items()}
    return extremes | {"certain and right": (certain, labels), "certain and wrong": (-certain, labels)}


ROWS = (
    Row(
        "sigmoid_focal",
        "dense.anchors",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 1),) * 2, ((5,),) * 2),
        make=with_labels,
        constant=(1,),
        hyper=({}, {"alpha": 0.5, "gamma": 0.0}, {"gamma": 0.5}),
        leading=lambda rank: rank - 1,
        rounding=1e-6,
        invariances={"permuted labels": permute_last},
        extremes=label_extremes(),
        hand=(
            # p = 1/2: the label that is on adds 1/4 · 1/4 log 2, one that is off three times as much
            Hand((np.zeros((1, 2)), np.array([[1.0, 0.0]])), [np.log(2) / 4]),
            # half the binary cross-entropy, whose gradient is (σ - y) / 2
            Hand(
                (np.array([[np.log(3), np.log(3)]]), np.array([[1.0, 0.0]])),
                [np.log(16 / 3) / 2],
                [[-0.125, 0.375]],
                {"alpha": 0.5, "gamma": 0.0},
            ),
        ),
        identical_is_zero=False,
        mismatches=tuple(("labels", shapes) for _, shapes in SAME_LOGITS),
        ranks=(("logits", ((), ())),),
        drawn=(((4, 5),) * 2, ((2, 3, 1),) * 2),
    ),
    Row(
        "smooth_l1",
        "dense.anchors",
        shapes=(((6, 4),) * 2, ((2, 3, 4),) * 2, ((3, 1),) * 2, ((4,),) * 2),
        hyper=({}, {"beta": 1 / 9}, {"beta": 2.0}),
        leading=lambda rank: rank - 1,
        invariances={"translation": translate, "mirror": lambda rng, arrays: tuple(-array for array in arrays)},
        extremes=feature_extremes((5, 4)),
        hand=(
            Hand(([[0.5, -3.0]], [[0.0, 0.0]]), [0.125 + 2.5], [[0.5, -1.0]]),
            Hand(([[0.5, -3.0]], [[0.0, 0.0]]), [0.4375 + 2.9375], [[1.0, -1.0]], {"beta": 0.125}),
        ),
        mismatches=tuple(("target", shapes) for _, shapes in SAME_LOGITS),
        ranks=(("student", ((), ())),),
        drawn=(((4, 4),) * 2, ((2, 3, 4),) * 2),
    ),
)
