"""Rows of `jaxkd.losses.dense.segmentation`."""

import numpy as np

from tests.loss_changes import Arrays, mirror, permute_last, permute_student_last, shift_each
from tests.loss_row import MAP_BATCHES, MAP_RANKS, MAPS, Hand, Row, feature_extremes, logit_extremes


def rotate_channels(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Rotates each network's features by its own orthogonal matrix."""
    return tuple(array @ np.linalg.qr(rng.normal(size=(array.shape[-1],) * 2))[0] for array in arrays)


def scale_positions(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Scales the features of every position by their own positive factor."""
    return tuple(array * rng.uniform(0.1, 10, size=(*array.shape[:-1], 1)) for array in arrays)


ROWS = (
    Row(
        "pixel_kl",
        "dense.segmentation",
        shapes=(((5, 2, 3, 4),) * 2, ((2, 2, 2, 3),) * 2, ((3, 1, 2, 2),) * 2),
        hyper=({}, {"temperature": 4.0}),
        leading=lambda rank: 3,
        rounding=1e-5,
        invariances={"shift": shift_each, "permuted classes": permute_last},
        mapped={
            "mirror": lambda rng, arrays: (mirror(rng, arrays), lambda result: result[:, :, ::-1]),
        },
        extremes={
            name: tuple(array[:, None, None] for array in arrays)
            for name, arrays in (
                logit_extremes()
                | {"-inf classes in the student": logit_extremes()["-inf classes in the teacher"][::-1]}
            ).items()
        },
        hand=(
            # p_t = [3/4, 1/4], p_s = [1/2, 1/2]; T² KL, and its gradient T (p_s - p_t)
            Hand(
                (np.zeros((1, 1, 1, 2)), np.array([2 * np.log(3), 0.0]).reshape(1, 1, 1, 2)),
                [[[4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))]]],
                [[[[-0.5, 0.5]]]],
                {"temperature": 2.0},
            ),
        ),
        mismatches=(
            ("teacher", ((4, 3, 3, 5), (4, 3, 3, 1))),
            ("teacher", ((4, 3, 3, 5), (1, 3, 3, 5))),
            ("teacher", ((4, 3, 3, 5), (4, 6, 6, 5))),
            ("teacher", ((4, 3, 3, 5), (4, 3, 1, 5))),
        ),
        ranks=MAP_RANKS,
        drawn=(((2, 2, 1, 3),) * 2, ((3, 1, 2, 4),) * 2),
    ),
    Row(
        "pair_affinity",
        "dense.segmentation",
        shapes=(
            ((5, 2, 4, 3), (5, 2, 4, 5)),
            ((3, 5, 4, 2), (3, 2, 4, 4)),
            ((3, 2, 4, 3), (3, 4, 3, 2)),
            ((2, 1, 3, 1), (2, 1, 3, 2)),
        ),
        hyper=({}, {"pool": 2}, {"max_window": 0.5}),
        execution=("constant_norm",),  # changes the gradient alone
        rounding=1e-6,
        invariances={
            "permuted channels": permute_student_last,
            "rotation": rotate_channels,
            "scale": scale_positions,
            "mirror": mirror,
        },
        extremes=feature_extremes(MAPS),
        hand=(
            # the two positions are orthogonal for the student, at 45° for the teacher: 2 · 1/2 / 4
            Hand(([[[[2.0, 0.0], [0.0, 3.0]]]], [[[[1.0, 0.0], [5.0, 5.0]]]]), [0.25], None),
            # of windows of two: cosine 0 of (1, 0) and (0, 1), and 1 of 1 and 1
            Hand(
                (
                    np.array([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]] * 2).reshape(1, 2, 4, 2),
                    np.ones((1, 2, 4, 1)),
                ),
                [0.5],
                None,
                {"pool": 2},
            ),
        ),
        mismatches=MAP_BATCHES,
        ranks=MAP_RANKS,
        drawn=(((2, 2, 2, 2), (2, 1, 3, 3)), ((2, 2, 2, 2),) * 2),
    ),
)
