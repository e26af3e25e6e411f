"""Rows of `jaxkd.losses.relations.distances`."""

import numpy as np

from tests.loss_changes import rotate, scale_each, translate
from tests.loss_row import BATCHES, EMBEDDINGS, Hand, Row, feature_extremes

ROWS = (
    Row(
        "distance_relation",
        "relations.distances",
        shapes=(((6, 13), (6, 21)), ((7, 2, 2, 3), (7, 5)), ((5, 1), (5, 3)), ((2, 4), (2, 4))),
        invariances={"translation": translate, "rotation": rotate, "scale": scale_each},
        extremes=feature_extremes(EMBEDDINGS),
        golden={"rkd_distance": lambda m: m.distance_relation},
        hand=(
            # student distances 1, 3, 2 over their mean 2; the teacher's are all equal
            Hand(([[0.0], [1.0], [3.0]], np.eye(3)), [1 / 12, 1 / 24, 1 / 24], None),
        ),
        relational=True,
        rounding=2e-6,
        mismatches=BATCHES,
        ranks=(("student", ((), ())),),
        drawn=(((4, 3), (4, 2)), ((5, 2),) * 2),
    ),
    Row(
        "angle_relation",
        "relations.distances",
        shapes=(((6, 13), (6, 21)), ((7, 2, 2, 3), (7, 5)), ((5, 1), (5, 3)), ((2, 4), (2, 4))),
        invariances={"translation": translate, "rotation": rotate, "scale": scale_each},
        extremes=feature_extremes(EMBEDDINGS),
        golden={"rkd_angle": lambda m: m.angle_relation},
        hand=(
            # student: a right angle at the first point; teacher: the first between the others (cosine -1), which see
            # the two others in one direction (cosine 1, the student's 1/√2); each twice among nine pairs
            Hand(
                ([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0.0], [1.0], [-1.0]]),
                [1 / 9, (1 - 0.5**0.5) ** 2 / 9, (1 - 0.5**0.5) ** 2 / 9],
                None,
            ),
        ),
        forward_mode=False,
        relational=True,
        rounding=2e-6,
        mismatches=BATCHES,
        ranks=(("student", ((), ())),),
        drawn=(((4, 3), (4, 2)), ((5, 2),) * 2),
    ),
)
