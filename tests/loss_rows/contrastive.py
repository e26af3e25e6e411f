"""Rows of `jaxkd.losses.contrastive`."""

import numpy as np

from tests.loss_changes import Arrays, permutation
from tests.loss_row import EMBEDDINGS, Hand, Row, feature_extremes


def scored(rng: np.random.Generator, *shapes: tuple[int, ...]) -> Arrays:
    """Returns positive scores of order one."""
    return tuple(np.exp(rng.normal(size=shape) / 2) for shape in shapes)


def classed(rng: np.random.Generator, student: tuple[int, ...], teacher: tuple[int, ...], labels: tuple[int, ...]):
    """Returns similar embeddings of three classes, the third with a single example."""
    classes = rng.integers(0, 3, size=labels)
    classes[2:3] = 3
    return rng.normal(1, 0.5, size=student), rng.normal(1, 0.5, size=teacher), classes


def permute_negatives(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    (scores,) = arrays
    return (np.concatenate([scores[:, :1], scores[:, 1:][:, permutation(rng, scores.shape[1] - 1)]], axis=1),)


def turn_both(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Rotates both networks' embeddings by one orthogonal matrix."""
    turn = np.linalg.qr(rng.normal(size=(arrays[0].shape[-1],) * 2))[0]
    return arrays[0] @ turn, arrays[1] @ turn, arrays[2]


def stretch(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Scales every embedding by its own positive factor."""
    return (*(array * rng.uniform(0.1, 10, size=(len(array), 1)) for array in arrays[:2]), arrays[2])


def rename(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    return (*arrays[:2], 7 - 2 * arrays[2])


def with_positive(score: float) -> Arrays:
    (scores,) = scored(np.random.default_rng(1), (5, 4))
    scores[1:3, 0] = score
    return (scores,)


def with_negatives(score: float) -> Arrays:
    (scores,) = scored(np.random.default_rng(1), (5, 4))
    scores[1:3, 1:3] = score
    return (scores,)


AXES = np.eye(3)

ROWS = (
    Row(
        "contrastive_nce",
        "contrastive",
        shapes=(((6, 9),), ((5, 4),), ((3, 17, 1),), ((4, 1),)),
        make=scored,
        call=lambda loss, scores, **options: loss(scores, **{"num_data": 50, **options}),
        hyper=({}, {"num_data": 3}),
        invariances={"permuted negatives": permute_negatives},
        extremes={
            "positive 0": with_positive(0.0),
            "positive 1e-30": with_positive(1e-30),
            "positive 1e30": with_positive(1e30),
            "negatives 0": with_negatives(0.0),
            "negatives 1e-30": with_negatives(1e-30),
            "negatives 1e30": with_negatives(1e30),
            "all 1e30": (np.full((5, 4), 1e30),),
            "all 1e-30": (np.full((5, 4), 1e-30),),
        },
        golden={"contrastive_nce": lambda m: lambda scores, *, n_data: m.contrastive_nce(scores, num_data=n_data)},
        identical_is_zero=False,
        ranks=(("scores", ((4,),)), ("scores", ((),)), ("scores", ((4, 5, 2),)), ("scores", ((4, 0),))),
        drawn=(((4, 5),), ((3, 7),)),
        valid=lambda arrays: (np.abs(arrays[0]) + 1 / 8,),
    ),
    Row(
        "info_nce",
        "contrastive",
        shapes=(((6, 13), (6, 13), (6,)), ((7, 3), (7, 3), (7,)), ((5, 1), (5, 1), (5,)), ((2, 4), (2, 4), (2,))),
        make=classed,
        hyper=({}, {"temperature": 1.0}),
        invariances={"rotation of both": turn_both, "lengths": stretch, "renamed classes": rename},
        extremes={name: (*arrays, np.array([0, 1, 0, 2, 2])) for name, arrays in feature_extremes(EMBEDDINGS).items()},
        hand=(
            # cosine 1 with the own, 0 with the others; the first and the last are of one class
            Hand(
                (AXES, AXES, np.array([0, 1, 0])),
                [np.log1p(np.exp(-2)), np.log1p(2 * np.exp(-2)), np.log1p(np.exp(-2))],
                None,
                {"temperature": 0.5},
            ),
        ),
        identical_is_zero=False,
        relational=True,
        relation_shapes=lambda batch, features: ((batch, features), (batch, features), (batch,)),
        rounding=2e-5,  # cosines over a temperature of 0.07
        mismatches=(
            *(
                ("teacher", (*shapes, (4,)))
                for shapes in [((4, 10), (1, 10)), ((1, 10), (4, 10)), ((4, 10), (4, 1)), ((4, 10), (4, 12))]
            ),
            *(("labels", ((4, 10), (4, 10), shape)) for shape in [(), (1,), (3,), (4, 1), (4, 10)]),
        ),
        ranks=(
            ("student", ((), (), ())),
            ("student", ((4,), (4,), (4,))),
            ("student", ((4, 2, 3), (4, 2, 3), (4,))),
            ("teacher", ((4, 3), (4,), (4,))),
        ),
    ),
)
