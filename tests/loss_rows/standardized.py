"""Rows of `jaxkd.losses.features.standardized`."""

import numpy as np

from tests.loss_changes import Arrays, mirror, permute_last
from tests.loss_row import BATCHES, EMBEDDINGS, Hand, Row, feature_extremes


def shift_channels(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Shifts each channel of each network."""
    return tuple(array + rng.normal(size=array.shape[-1]) for array in arrays)


ROWS = (
    Row(
        "pearson_features",
        "features.standardized",
        shapes=(((5, 3, 2, 3),) * 2, ((6, 4),) * 2, ((3, 4, 4, 2), (3, 2, 2, 2)), ((4, 3, 2),) * 2),
        rounding=1e-5,
        invariances={"shifted channels": shift_channels, "permuted channels": permute_last, "mirror": mirror},
        extremes={
            name: arrays
            for name, arrays in feature_extremes(EMBEDDINGS).items()
            # A deviation next to 1e-6 is another one in float32.
            if name not in ("vanishing", "vanishing student")
        },
        hand=(
            # deviations of 1 and 10 around the means: [-1, 0, 1] and [1, 0, -1]
            Hand(
                ([[0.0], [1.0], [2.0]], [[20.0], [10.0], [0.0]]),
                [(1 / (1 + 1e-6) + 10 / (10 + 1e-6)) ** 2 / 2, 0.0, (1 / (1 + 1e-6) + 10 / (10 + 1e-6)) ** 2 / 2],
            ),
        ),
        relational=True,
        needs_others=False,  # a map has positions
        relation_shapes=lambda batch, features: ((batch, features), (batch, features)),
        mismatches=tuple(
            ("teacher", shapes)
            for shapes in [
                *(shapes for _, shapes in BATCHES[:3]),
                ((4, 10), (4, 1)),
                ((4, 8, 8, 3), (4, 8, 8, 5)),
                ((4, 3, 5), (4, 5)),
            ]
        ),
        ranks=(("student", ((4,), (4,))),),
        drawn=(((4, 3),) * 2, ((5, 2),) * 2),
    ),
)
