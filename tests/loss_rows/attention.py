"""Rows of `jaxkd.losses.features.attention`."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.loss_changes import Arrays, flip_signs, mirror, permute_last, permute_student_last, scale_each
from tests.loss_row import MAP_BATCHES, MAP_RANKS, MAPS, Hand, Row, feature_extremes, golden


def pair(student: list[float], teacher: list[float]) -> Arrays:
    """Returns maps of one channel and one row of positions."""
    return np.array(student).reshape(1, 1, -1, 1), np.array(teacher).reshape(1, 1, -1, 1)


def scale_channels(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Scales every channel by its own factor of either sign."""
    return tuple(a * rng.uniform(0.1, 10, a.shape[3]) * rng.choice([-1, 1], a.shape[3]) for a in arrays)


def shift_channels(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Adds a constant to every channel, to which a softmax over positions is invariant."""
    return tuple(a + rng.normal(size=a.shape[3]) for a in arrays)


def selectivity_of_golden(case: str, module: Any) -> Callable:
    """Excludes channels of zeros, at which a difference quotient is no derivative."""
    alive = golden(case, "in")["s"].any(axis=(1, 2), keepdims=True)
    return lambda student, teacher: module.neuron_selectivity(student * alive, teacher)


ROWS = (
    Row(
        "attention_transfer",
        "features.attention",
        shapes=(
            ((5, 3, 4, 2), (5, 3, 4, 3)),
            ((3, 7, 5, 2), (3, 4, 3, 4)),
            ((3, 4, 3, 2), (3, 7, 5, 1)),
            ((3, 5, 2, 2), (3, 3, 4, 2)),
            ((4, 1, 1, 3),) * 2,
        ),
        hyper=({}, {"p": 1}, {"p": 3}),
        invariances={
            "scale": scale_each,
            "signs": flip_signs,
            "permuted channels": permute_student_last,
            "mirror": mirror,
        },
        extremes=feature_extremes(MAPS),
        golden={f"attention_{stage}": lambda m: m.attention_transfer for stage in range(3)},
        hand=(
            # Q_s = [4, 3]/5 of squares, Q_t = [0, 1]: ((4/5)² + (2/5)²) / 2
            Hand((np.array([2.0, 3**0.5]).reshape(1, 1, 2, 1), np.array([0.0, 5.0]).reshape(1, 1, 2, 1)), [0.4], None),
            # the same of absolute values
            Hand(
                (np.array([4.0, -3.0]).reshape(1, 1, 2, 1), np.array([0.0, 5.0]).reshape(1, 1, 2, 1)),
                [0.4],
                None,
                {"p": 1},
            ),
        ),
        mismatches=MAP_BATCHES,
        ranks=MAP_RANKS,
        drawn=(((3, 3, 2, 2), (3, 2, 3, 1)), ((3, 2, 2, 2),) * 2),
    ),
    Row(
        "factor_transfer",
        "features.attention",
        shapes=(
            ((5, 3, 4, 2), (5, 3, 4, 3)),
            ((3, 7, 5, 2), (3, 4, 3, 4)),
            ((3, 4, 3, 2), (3, 7, 5, 1)),
            ((3, 5, 2, 2), (3, 3, 4, 2)),
            ((4, 1, 2, 3),) * 2,
        ),
        invariances={
            "scale": scale_each,
            "signs": flip_signs,
            "permuted channels": permute_student_last,
            "mirror": mirror,
        },
        extremes=feature_extremes(MAPS),
        golden={f"factor_{stage}": lambda m: m.factor_transfer for stage in range(3)},
        # Q_s = [4, 3]/5 of squares, Q_t = [0, 1]: (4/5 + 2/5) / 2
        hand=(Hand(pair([2.0, 3**0.5], [0.0, 5.0]), [0.6]),),
        mismatches=MAP_BATCHES,
        ranks=MAP_RANKS,
        drawn=(((3, 3, 2, 2), (3, 2, 3, 1)), ((3, 2, 2, 2),) * 2),
    ),
    Row(
        "neuron_selectivity",
        "features.attention",
        # positions above the channels in the first, below in the second: two ways to compute it
        shapes=(
            ((5, 3, 4, 2), (5, 3, 4, 3)),
            ((3, 2, 1, 4), (3, 2, 1, 2)),
            ((3, 7, 5, 2), (3, 4, 3, 4)),
            ((3, 2, 2, 2), (3, 5, 3, 5)),
            ((3, 5, 2, 1), (3, 3, 4, 1)),
        ),
        rounding=1e-6,  # a difference of kernels' means, which are at most 1
        invariances={
            "scale of each channel": scale_channels,
            "permuted channels": permute_student_last,
            "mirror": mirror,
        },
        extremes=feature_extremes(MAPS),
        golden={f"nst_{stage}": functools.partial(selectivity_of_golden, f"nst_{stage}") for stage in range(3)},
        hand=(
            # unit vectors at an angle whose cosine is 3/5: 1 + 1 - 2 · 9/25
            Hand(pair([3.0, 4.0, 0.0], [2.0, 0.0, 0.0]), [32 / 25]),
            # two channels at right angles are alike half of the time: ½ + 1 - 2 · ½
            Hand((np.eye(2).reshape(1, 2, 1, 2), np.array([1.0, 0.0]).reshape(1, 2, 1, 1)), [0.5]),
        ),
        mismatches=MAP_BATCHES,
        ranks=MAP_RANKS,
        drawn=(((3, 3, 2, 2), (3, 2, 3, 1)), ((3, 2, 2, 2),) * 2),
    ),
    Row(
        "channel_kl",
        "features.attention",
        shapes=(
            ((5, 3, 2, 3),) * 2,
            ((3, 5, 3, 2), (3, 4, 2, 2)),
            ((3, 2, 3, 2), (3, 4, 5, 2)),
            ((3, 5, 2, 2), (3, 3, 4, 2)),
            ((4, 1, 2, 1),) * 2,
        ),
        hyper=({}, {"temperature": 1.0}, {"temperature": 0.5}),
        rounding=1e-5,  # T² times that of the logarithms, whose difference is the loss
        invariances={"shift of each channel": shift_channels, "permuted channels": permute_last, "mirror": mirror},
        extremes=feature_extremes(MAPS),
        hand=(
            # p_t = [3/4, 1/4], p_s = [1/2, 1/2] over the positions of the first channel, the second agrees
            Hand(
                (np.zeros((1, 1, 2, 2)), np.array([[2 * np.log(3), 1.0], [0.0, 1.0]]).reshape(1, 1, 2, 2)),
                [4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5)) / 2],
                np.array([[-0.25, 0.0], [0.25, 0.0]]).reshape(1, 1, 2, 2),
                {"temperature": 2.0},
            ),
        ),
        mismatches=(
            *MAP_BATCHES[:2],
            ("teacher", ((4, 8, 8, 3), (4, 8, 8, 1))),
            ("teacher", ((4, 8, 8, 3), (4, 4, 4, 5))),
        ),
        ranks=MAP_RANKS,
        drawn=(((3, 3, 2, 2), (3, 2, 3, 2)), ((3, 2, 2, 2),) * 2),
    ),
)
