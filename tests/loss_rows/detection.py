"""Rows of `jaxkd.losses.dense.detection`. `tests/losses/dense_test.py` tests `imitation_mask`."""

import numpy as np

from tests.loss_changes import Arrays, mirror, permutation, shift_each
from tests.loss_row import MAPS, SAME_LOGITS, Hand, Row, feature_extremes, logit_extremes, normal, without


def permute_objects(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Permutes all classes but the background."""
    order = np.array([0, *(1 + permutation(rng, arrays[0].shape[-1] - 1))])
    return tuple(array[..., order] for array in arrays)


def translate_all(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Shifts all boxes of an image by one vector."""
    vector = 3 * rng.normal(size=arrays[0].shape)
    return tuple(array + vector for array in arrays)


def imitated(
    rng: np.random.Generator, student: tuple[int, ...], teacher: tuple[int, ...], mask: tuple[int, ...]
) -> Arrays:
    """Returns two maps, and a mask of about half of the positions, at least one of each image."""
    some = rng.random(mask) < 0.5
    some[:, 0, 0] = True
    return (*normal(rng, student, teacher), some)


def garbage_elsewhere(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    student, teacher, mask = arrays
    return np.where(mask[..., None], student, rng.normal(size=student.shape)), teacher, mask


def mask_extremes() -> dict[str, Arrays]:
    checkered = np.indices(MAPS[:3]).sum(0) % 2 == 0
    cases = {name: (*arrays, checkered) for name, arrays in feature_extremes(MAPS).items()}
    student, teacher, _ = cases["some duplicates"]
    first = np.arange(5).reshape(5, 1, 1)
    return cases | {
        "no position": (student, teacher, checkered & False),
        "no position in some images": (student, teacher, checkered & (first > 2)),
        "all positions": (student, teacher, checkered | True),
    }


BOXES = (5, 4)

ROWS = (
    Row(
        "class_weighted_cross_entropy",
        "dense.detection",
        shapes=(((6, 5),) * 2, ((2, 3, 4),) * 2, ((4, 2),) * 2, ((5,),) * 2),
        hyper=({}, {"background_weight": 0.5, "background": 2}, {"temperature": 2.0}),
        leading=lambda rank: rank - 1,
        rounding=1e-5,
        invariances={"shift": shift_each, "permuted objects": permute_objects},
        extremes=logit_extremes() | {"-inf classes in the student": (without(0, 4), logit_extremes()["zeros"][1])},
        hand=(
            # 1.5 · 3/4 log 2 + 1/4 log 2; the gradient is (Σ w p_t) p_s - w p_t
            Hand(
                ([[0.0, 0.0]], [[np.log(3), 0.0]]),
                [1.375 * np.log(2)],
                [[0.6875 - 1.125, 0.6875 - 0.25]],
            ),
        ),
        identical_is_zero=False,
        mismatches=SAME_LOGITS,
        ranks=(("student", ((), ())),),
        drawn=(((4, 5),) * 2, ((2, 3, 4),) * 2),
    ),
    Row(
        "bounded_regression",
        "dense.detection",
        shapes=(((6, 4),) * 3, ((2, 3, 4),) * 3, ((3, 1),) * 3, ((4,),) * 3),
        hyper=({}, {"margin": -0.5}),  # with a positive margin, a student that agrees is not yet good enough
        leading=lambda rank: rank - 1,
        invariances={"translation": translate_all, "mirror": lambda rng, arrays: tuple(-array for array in arrays)},
        extremes={
            name: (*arrays, 0.5 * np.roll(arrays[1], 1, axis=0)) for name, arrays in feature_extremes(BOXES).items()
        }
        | {"a perfect teacher": (*normal(np.random.default_rng(0), BOXES), np.zeros(BOXES), np.zeros(BOXES))},
        hand=(
            # worse than the teacher, as good, and better: 9 > 4, 4 = 4, 1 < 4; with a margin the second counts
            Hand(([[3.0], [2.0], [1.0]], [[2.0], [2.0], [2.0]], [[0.0]] * 3), [9.0, 0.0, 0.0], None),
            Hand(([[3.0], [1.0]], [[2.0], [2.0]], [[0.0]] * 2), [9.0, 0.0], [[6.0], [0.0]]),
            Hand(
                ([[3.0], [2.0], [1.0]], [[2.0], [2.0], [2.0]], [[0.0]] * 3),
                [9.0, 4.0, 0.0],
                [[6.0], [4.0], [0.0]],
                {"margin": 1.0},
            ),
        ),
        mismatches=tuple(
            (name, shapes)
            for name, shapes in [
                ("teacher", ((5, 4), (5, 1), (5, 4))),
                ("teacher", ((5, 4), (1, 4), (5, 4))),
                ("teacher", ((5, 4), (4,), (5, 4))),
                ("target", ((5, 4), (5, 4), (5, 1))),
                ("target", ((5, 4), (5, 4), (1, 4))),
                ("target", ((2, 3, 4), (2, 3, 4), (3, 4))),
            ]
        ),
        ranks=(("student", ((), (), ())),),
        drawn=(((4, 4),) * 3, ((2, 3, 4),) * 3),
    ),
    Row(
        "feature_imitation",
        "dense.detection",
        shapes=(
            ((5, 3, 4, 2), (5, 3, 4, 2), (5, 3, 4)),
            ((3, 2, 2, 3), (3, 2, 2, 3), (3, 2, 2)),
            ((4, 1, 1, 1), (4, 1, 1, 1), (4, 1, 1)),
        ),
        make=imitated,
        invariances={"mirror": mirror, "elsewhere": garbage_elsewhere},
        extremes=mask_extremes(),
        hand=(
            # two positions: (1 + 4 + 9 + 0) / 4
            Hand(
                (
                    np.array([[[[1.0, 2.0], [3.0, 0.0], [5.0, 5.0]]]]),
                    np.zeros((1, 1, 3, 2)),
                    np.array([[[True, True, False]]]),
                ),
                [3.5],
                [[[[0.5, 1.0], [1.5, 0.0], [0.0, 0.0]]]],
            ),
        ),
        mismatches=(
            ("teacher", ((4, 3, 3, 2), (4, 3, 3, 1), (4, 3, 3))),
            ("teacher", ((4, 3, 3, 2), (1, 3, 3, 2), (4, 3, 3))),
            ("teacher", ((4, 3, 3, 2), (4, 6, 6, 2), (4, 3, 3))),
            ("mask", ((4, 3, 3, 2), (4, 3, 3, 2), (1, 3, 3))),
            ("mask", ((4, 3, 3, 2), (4, 3, 3, 2), (4, 3, 1))),
            ("mask", ((4, 3, 3, 2), (4, 3, 3, 2), (4, 3, 3, 2))),
        ),
        ranks=(("student", ((4, 2), (4, 2), (4,))),),
        drawn=(((2, 2, 3, 2), (2, 2, 3, 2), (2, 2, 3)), ((3, 2, 1, 1), (3, 2, 1, 1), (3, 2, 1))),
    ),
)
