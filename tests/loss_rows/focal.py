"""Rows of `jaxkd.losses.dense.focal`."""

import numpy as np

from tests.loss_changes import Arrays, permutation, permute_last
from tests.loss_row import MAPS, Hand, Row, feature_extremes, normal

BOXES = np.array([[[0.0, 0.0, 1.5, 1.2], [1.0, 1.0, 2.0, 3.0]]] * 5)


def with_boxes(
    rng: np.random.Generator, student: tuple[int, ...], teacher: tuple[int, ...], boxes: tuple[int, ...]
) -> Arrays:
    """Returns two maps and boxes, some of which have no area or reach beyond the map."""
    corner = rng.uniform(-1, student[1] - 1, size=(*boxes[:-1], 2))
    return (*normal(rng, student, teacher), np.concatenate([corner, corner + rng.uniform(-0.3, 2, corner.shape)], -1))


def channels(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    return *permute_last(rng, arrays[:2]), arrays[2]


def mirrored(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    student, teacher, boxes = arrays
    last = student.shape[2] - 1
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    return student[:, :, ::-1], teacher[:, :, ::-1], np.stack([last - right, top, last - left, bottom], axis=-1)


def permute_boxes(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    student, teacher, boxes = arrays
    return student, teacher, boxes[:, permutation(rng, boxes.shape[1])]


ROWS = (
    Row(
        "focal_global",
        "dense.focal",
        shapes=(
            ((5, 3, 4, 2), (5, 3, 4, 2), (5, 3, 4)),
            ((3, 2, 2, 3), (3, 2, 2, 3), (3, 1, 4)),
            ((4, 1, 1, 1), (4, 1, 1, 1), (4, 2, 4)),
            ((2, 3, 2, 2), (2, 3, 2, 2), (2, 0, 4)),
        ),
        make=with_boxes,
        constant=(2,),
        hyper=({"alpha": 1.0, "beta": 0.5, "gamma": 0.3}, {}, {"temperature": 2.0, "alpha": 1.0}),
        rounding=1e-5,
        invariances={"permuted channels": channels, "mirror": mirrored, "permuted boxes": permute_boxes},
        extremes={name: (*arrays, BOXES) for name, arrays in feature_extremes(MAPS).items() if name != "large"}
        | {
            "no boxes": (*feature_extremes(MAPS)["some duplicates"], np.zeros((5, 2, 4))),
            "a box of everything": (*feature_extremes(MAPS)["some duplicates"], BOXES * 0 + [-9.0, -9.0, 9.0, 9.0]),
        },
        hand=(
            # One row of cells, F_t = 0, F_s = [1, 2]: attention of 1; a box of the first cell covers two: weight 1/2.
            # Student's attention to positions softmax([2, 4]) · 2, to its one channel 1.
            Hand(
                ([[[[1.0], [2.0]]]], [[[[0.0], [0.0]]]], [[[0.0, -1.0, 0.5, 0.0]]]),
                [(1 + 4) / 4 + 2 * (2 / (1 + np.exp(-2)) - 1)],
                None,
                {"alpha": 1.0, "beta": 1.0, "gamma": 1.0},
            ),
        ),
        mismatches=(
            ("teacher", ((4, 3, 3, 2), (4, 3, 3, 1), (4, 3, 4))),
            ("teacher", ((4, 3, 3, 2), (1, 3, 3, 2), (4, 3, 4))),
            ("boxes", ((4, 3, 3, 2), (4, 3, 3, 2), (3, 3, 4))),
            ("boxes", ((4, 3, 3, 2), (4, 3, 3, 2), (4, 3, 5))),
            ("boxes", ((4, 3, 3, 2), (4, 3, 3, 2), (4, 4))),
        ),
        ranks=(("student", ((4, 2), (4, 2), (4, 1, 4))),),
        drawn=(((2, 2, 3, 2), (2, 2, 3, 2), (2, 2, 4)), ((3, 2, 1, 1), (3, 2, 1, 1), (3, 1, 4))),
    ),
)
