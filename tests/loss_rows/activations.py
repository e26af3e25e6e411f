"""Rows of `jaxkd.losses.features.activations`."""

from collections.abc import Callable

import numpy as np

from tests.loss_changes import Arrays, mirror, permutation, permute_last, shift_both
from tests.loss_row import BATCHES, MAPS, Hand, Row, feature_extremes, normal

SAME = tuple(
    ("teacher", shapes)
    for shapes in [
        *(shapes for _, shapes in BATCHES),
        ((4, 8, 8, 3), (4, 8, 8, 1)),
        ((4, 8, 8, 3), (4, 8, 1, 3)),
        ((4, 8, 8, 3), (4, 4, 4, 3)),
        ((4, 8, 8, 3), (4, 8, 8)),
        ((4, 8), (4,)),
    ]
)


def with_channels(make: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]) -> Callable[..., Arrays]:
    """Returns two features, and one number per channel."""
    return lambda rng, *shapes: (*normal(rng, *shapes[:2]), make(rng, shapes[2]))


def same_with(name: str) -> tuple[tuple[str, tuple[tuple[int, ...], ...]], ...]:
    """Returns mismatches of student and teacher, and of the numbers per channel."""
    of_teacher = tuple(("teacher", (*shapes, shapes[0][-1:])) for _, shapes in SAME)
    features = ((4, 8, 8, 3), (4, 8, 8, 3))
    wrong = ((4,), (1,), (), (8, 3), (4, 1, 1, 3), (1, 1, 1, 1), (1, 3))
    return (*of_teacher, *((name, (*features, shape)) for shape in wrong))


def permute_channels(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    order = permutation(rng, arrays[0].shape[-1])
    return tuple(array[..., order] for array in arrays)


def mirror_features(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    return (*mirror(rng, arrays[:2]), *arrays[2:])


def shift_features(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    return (*shift_both(rng, arrays[:2]), *arrays[2:])


def extremes_with(*numbers: list[float]) -> dict[str, Arrays]:
    """Returns the extremes of features with several numbers per channel."""
    return {
        f"{name}, {each}": (*arrays, np.array(each))
        for name, arrays in feature_extremes(MAPS).items()
        for each in numbers
    }


CHANNELS = (
    ((5, 3, 2, 3), (5, 3, 2, 3), (3,)),
    ((3, 2, 3, 2), (3, 2, 3, 2), (2,)),
    ((4, 3, 2), (4, 3, 2), (2,)),
    ((4, 5), (4, 5), (5,)),
)

ROWS = (
    Row(
        "hint_mse",
        "features.activations",
        shapes=(
            ((5, 3, 4, 2),) * 2,
            ((3, 7, 5, 2), (3, 4, 3, 2)),
            ((3, 4, 3, 2), (3, 7, 5, 2)),
            ((3, 5, 2, 2), (3, 3, 4, 2)),
            ((4, 5, 3),) * 2,
            ((4, 7),) * 2,
        ),
        invariances={"shift of both": shift_both, "permuted channels": permute_last, "mirror": mirror},
        extremes=feature_extremes(MAPS),
        golden={"hint": lambda m: m.hint_mse},
        hand=(
            Hand(([[1.0, 2.0]], [[3.0, -1.0]]), [6.5], [[-2.0, 3.0]]),
            # five rows pooled to two: windows 0-2 and 2-4, the third row is in both
            Hand(
                (np.arange(5.0).reshape(1, 5, 1, 1), np.zeros((1, 2, 1, 1))),
                [(1 + 9) / 2],
                np.array([1, 1, 4, 3, 3]).reshape(1, 5, 1, 1) / 3,
            ),
        ),
        mismatches=tuple(
            ("teacher", shapes)
            for shapes in [
                *(shapes for _, shapes in BATCHES),
                ((4, 8, 8, 3), (4, 8, 8, 1)),
                ((4, 8, 8, 1), (4, 8, 8, 3)),
                ((4, 8, 8, 3), (1, 8, 8, 3)),
                ((4, 8, 8, 3), (4, 8, 8)),
                ((4, 8), (4, 1)),
                ((4, 8), (4,)),
                ((4, 5, 8), (4, 1, 8)),
                ((4, 5, 8), (4, 7, 8)),
            ]
        ),
        ranks=(("student", ((4,), (4,))),),
        drawn=(((3, 3, 2, 2), (3, 2, 3, 2)), ((4, 3),) * 2),
    ),
    Row(
        "activation_boundary",
        "features.activations",
        shapes=(((5, 3, 2, 3),) * 2, ((4, 3, 2),) * 2, ((4, 7),) * 2),
        hyper=({}, {"margin": 0.25}, {"margin": 0.0}),
        invariances={
            "permuted channels": permute_last,
            "mirror": mirror,
            "size of the teacher": lambda rng, a: (a[0], a[1] * rng.uniform(0.1, 10, size=a[1].shape)),
            "both signs": lambda rng, a: (-a[0], -a[1]),
        },
        extremes=feature_extremes(MAPS),
        golden={"activation_boundary": lambda m: m.activation_boundary},
        hand=(
            # off: below -1 there is nothing to pay, above it (s + 1)²; on: above 1 nothing, below it (s - 1)²
            Hand(
                ([[-2.0, 0.0, 3.0, -2.0, 0.0, 3.0]], [[-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]]),
                [0 + 1 + 16 + 9 + 1 + 0],
                [[0.0, 2.0, 8.0, -6.0, -2.0, 0.0]],
            ),
            # a teacher of exactly 0 is off
            Hand(([[0.5]], [[0.0]]), [1.0], [[2.0]], {"margin": 0.5}),
        ),
        identical_is_zero=False,
        mismatches=SAME,
        ranks=(("student", ((4,), (4,))),),
        drawn=(((3, 2, 3, 2),) * 2, ((4, 3),) * 2),
    ),
    Row(
        "overhaul",
        "features.activations",
        shapes=(*CHANNELS, ((3, 2, 3, 2), (3, 2, 3, 2), (1, 1, 1, 2))),
        make=with_channels(lambda rng, shape: -np.abs(rng.normal(size=shape))),
        shared=(2,),
        invariances={"permuted channels": permute_channels, "mirror": mirror_features},
        extremes=extremes_with([-0.5, -1e-3, -2.0], [0.0, 0.0, 0.0]),
        golden={"ofd": lambda m: m.overhaul},
        hand=(
            # targets 2, 1, -1, -1, -½: reached for from below and from above, passed below, exceeded, passed below
            Hand(
                ([[1.0, 3.0, -2.0, 0.5, -0.75]], [[2.0, 1.0, -3.0, -3.0, -0.5]], [-1.0] * 5),
                [1 + 4 + 0 + 2.25 + 0],
                [[-2.0, 4.0, 0.0, 3.0, 0.0]],
            ),
        ),
        mismatches=same_with("margin"),
        ranks=(("student", ((4,), (4,), (4,))),),
        drawn=(((3, 2, 3, 2), (3, 2, 3, 2), (2,)), ((4, 3), (4, 3), (3,))),
        valid=lambda arrays: (*arrays[:2], -np.abs(arrays[2])),
    ),
    Row(
        "overhaul_margin",
        "features.activations",
        shapes=(((6,), (6,)), ((9,), (9,))),
        per_example=False,
        identical_is_zero=False,
        invariances={"sign of the scale": lambda rng, a: (a[0], -a[1])},
        mapped={
            "scale of both": lambda rng, a: ((a[0] * 7, a[1] * 7), lambda result: result * 7),
            "permuted channels": lambda rng, a: ((a[0][::-1], a[1][::-1]), lambda result: result[::-1]),
        },
        extremes={
            "zeros": (np.zeros(5), np.zeros(5)),
            "no spread": (np.array([-2.0, -1e-3, 0.0, 1e-3, 5.0]), np.zeros(5)),
            "little spread": (np.array([-2.0, -1e-3, 0.0, 1e-3, 5.0]), np.full(5, 1e-6)),
            "almost never negative": (np.array([3.0, 3.0902, 3.0903, 4.0, 1e4]), np.ones(5)),
            "almost always negative": (np.array([-3.0, -8.0, -39.0, -41.0, -1e4]), np.ones(5)),
            "wide": (np.array([-2.0, -1e-3, 0.0, 1e-3, 5.0]), np.full(5, 1e4)),
        },
        hand=(
            # half a standard normal has the mean -√(2/π); with Φ(-4) there is no mean to take
            Hand(
                ([0.0, 0.0, 4.0, 40.0], [1.0, -2.0, 1.0, 10.0]), [-((2 / np.pi) ** 0.5), -((8 / np.pi) ** 0.5), -3, -30]
            ),
        ),
        leading=lambda rank: rank,
        mismatches=(("std", ((6,), (5,))), ("std", ((6,), (1,))), ("std", ((1,), (6,)))),
        ranks=(("mean", ((), ())), ("mean", ((2, 3), (2, 3)))),
    ),
    Row(
        "hierarchical_context",
        "features.activations",
        shapes=(
            ((5, 5, 4, 2),) * 2,
            ((3, 3, 4, 1),) * 2,
            ((2, 8, 9, 1),) * 2,
            ((3, 2, 2, 2),) * 2,
            ((3, 1, 3, 2),) * 2,
        ),
        invariances={"shift of both": shift_both, "permuted channels": permute_last, "mirror": mirror},
        extremes=feature_extremes(MAPS),
        golden={"hcl": lambda m: m.hierarchical_context},
        hand=(
            # the map: mean (1, 0, 0, 1) = ½; one window of mean ½: (½ + ½ · ¼) / (1 + ½)
            Hand(
                (np.eye(2).reshape(1, 2, 2, 1), np.zeros((1, 2, 2, 1))),
                [5 / 12],
                (np.array([[1 / 2, 0], [0, 1 / 2]]) + 1 / 8).reshape(1, 2, 2, 1) / 1.5,
            ),
            # a difference of one everywhere is one at every level
            Hand((np.ones((1, 8, 8, 2)), np.zeros((1, 8, 8, 2))), [1.0]),
        ),
        mismatches=SAME[3:7],
        ranks=(("student", ((4, 10), (4, 10))), ("student", ((4, 8, 3), (4, 8, 3)))),
        drawn=(((3, 3, 2, 2),) * 2, ((4, 2, 2, 1),) * 2),
    ),
    Row(
        "gaussian_nll",
        "features.activations",
        shapes=CHANNELS,
        make=with_channels(lambda rng, shape: rng.uniform(0.5, 2, size=shape)),
        shared=(2,),
        invariances={
            "shift of both": shift_features,
            "permuted channels": permute_channels,
            "mirror": mirror_features,
            "mean for target": lambda rng, a: (a[1], a[0], a[2]),
        },
        extremes=extremes_with([1.0, 1e-3, 1e3]),
        golden={"gaussian_nll": lambda m: m.gaussian_nll},
        hand=(
            # ½ (4/4 + log 4) and ½ (0 + log 1)
            Hand(([[3.0, 0.0]], [[1.0, 0.0]], [4.0, 1.0]), [(1 + np.log(4)) / 4], [[0.25, 0.0]]),
        ),
        identical_is_zero=False,
        mismatches=tuple(("target" if n == "teacher" else n, s) for n, s in same_with("variance")),
        ranks=(("mean", ((4,), (4,), (4,))),),
        drawn=(((3, 2, 3, 2), (3, 2, 3, 2), (2,)), ((4, 3), (4, 3), (3,))),
        valid=lambda arrays: (*arrays[:2], np.maximum(np.abs(arrays[2]), 0.125)),
    ),
    Row(
        "channel_weighted_mse",
        "features.activations",
        shapes=CHANNELS,
        make=with_channels(lambda rng, shape: rng.uniform(0.1, 1, size=shape)),
        shared=(2,),
        invariances={"shift of both": shift_features, "permuted channels": permute_channels, "mirror": mirror_features},
        extremes=extremes_with([1.0, 0.0, 0.25]),
        hand=(Hand(([[1.0, 2.0, 3.0]], [[0.0, 0.0, 1.0]], [0.75, 0.25, 0.0]), [0.75 + 1], [[1.5, 1.0, 0.0]]),),
        mismatches=same_with("weights"),
        ranks=(("student", ((4,), (4,), (4,))),),
        drawn=(((3, 2, 3, 2), (3, 2, 3, 2), (2,)), ((4, 3), (4, 3), (3,))),
        valid=lambda arrays: (*arrays[:2], np.abs(arrays[2])),
    ),
)
