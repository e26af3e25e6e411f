"""Rows of `jaxkd.losses.gradients`."""

import numpy as np

from tests.loss_changes import Arrays, scale_each
from tests.loss_row import EMBEDDINGS, Hand, Row, feature_extremes


def rotate_both(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Rotates all gradients by one orthogonal matrix."""
    turn = np.linalg.qr(rng.normal(size=(arrays[0].shape[-1],) * 2))[0]
    return tuple(array @ turn for array in arrays)


ROWS = (
    Row(
        "jacobian_matching",
        "gradients",
        shapes=(((5, 4, 3),) * 2, ((4, 6),) * 2, ((3, 2, 2, 3),) * 2, ((4, 1),) * 2),
        invariances={"scale": scale_each, "rotation of both": rotate_both},
        extremes=feature_extremes(EMBEDDINGS),
        hand=(
            # n = [3/5, 4/5] and [0, 1]; the gradient is (2 / ‖s‖) (⟨n_s, n_t⟩ n_s - n_t)
            Hand(
                ([[3.0, 4.0]], [[0.0, 2.0]]),
                [0.36 + 0.04],
                [[0.4 * 0.8 * 0.6, 0.4 * (0.8 * 0.8 - 1)]],
            ),
            Hand(([[0.0, 0.0]], [[0.0, 0.0]]), [0.0], [[0.0, 0.0]]),
        ),
        mismatches=tuple(
            ("teacher", shapes)
            for shapes in [
                ((4, 10), (1, 10)),
                ((1, 10), (4, 10)),
                ((4, 10), (4, 1)),
                ((4, 8, 8, 3), (4, 8, 8, 1)),
                ((4, 8, 8, 3), (4, 4, 4, 3)),
                ((4, 6), (4, 2, 3)),
            ]
        ),
        ranks=(("student", ((4,), (4,))),),
        drawn=(((4, 3),) * 2, ((3, 2, 2),) * 2),
    ),
)
