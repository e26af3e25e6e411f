"""Rows of `jaxkd.losses.features.flow`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.loss_changes import Arrays, mirror, permutation
from tests.loss_row import MAPS, Hand, Row, Shapes, feature_extremes


def layers(loss: Callable[..., Any], *arrays: np.ndarray, **options: Any) -> Any:
    """Calls the loss with the student's layers, then the teacher's."""
    half = len(arrays) // 2
    return loss(arrays[:half], arrays[half:], **options)


def agreeing(arrays: Arrays) -> Arrays:
    return arrays[: len(arrays) // 2] * 2


def layer_extremes() -> dict[str, Arrays]:
    """Returns extremes of two layers each; the second layer's map is another example's."""
    return {
        name: (student, np.roll(student, 1, axis=0), teacher, np.roll(teacher, 1, axis=0))
        for name, (student, teacher) in feature_extremes(MAPS).items()
    }


def scale_maps(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Scales every map by its own factor of either sign."""
    return tuple(array * rng.uniform(0.1, 10) * rng.choice([-1, 1]) for array in arrays)


def permute_channels(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Permutes the channels of each layer, in both networks alike."""
    orders = [permutation(rng, array.shape[3]) for array in arrays[: len(arrays) // 2]]
    return tuple(array[..., order] for array, order in zip(arrays, orders * 2, strict=True))


def permute_positions(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Permutes the positions of every map."""

    def permuted(array: np.ndarray) -> np.ndarray:
        flat = array.reshape(len(array), -1, array.shape[3])
        return flat[:, permutation(rng, flat.shape[1])].reshape(array.shape)

    return tuple(map(permuted, arrays))


def one_layer_each(student: list[list[float]], teacher: list[list[float]]) -> Arrays:
    """Returns layers of one position and the given channels."""
    return tuple(np.array(layer).reshape(1, 1, 1, -1) for layer in (*student, *teacher))


def dominated(arrays: Arrays) -> Arrays:
    """Makes one entry dominant, so that the first singular vector and its sign are unique."""
    arrays = tuple(np.array(array) for array in arrays)
    for array in arrays:
        array[:, 0, 0, 0] = 8192
    return arrays


def mismatched(argument: str) -> tuple[tuple[str, Shapes], ...]:
    """Returns mismatches of the batch, and of the channels of one layer."""
    first, second = (4, 8, 8, 3), (4, 4, 4, 5)
    return (
        (f"teacher_{argument}", (first, second, (1, 8, 8, 3), second)),
        (f"teacher_{argument}", (first, second, first, (3, 4, 4, 5))),
        (f"teacher_{argument}", (first, second, (4, 8, 8, 1), second)),
        (f"teacher_{argument}", (first, second, first, (4, 4, 4, 4))),
        (f"teacher_{argument}", (first, second, second, first)),
        (f"student_{argument}", (first, (1, 4, 4, 5), first, second)),
    )


def low_ranks(argument: str) -> tuple[tuple[str, Shapes], ...]:
    return (
        (f"student_{argument}", ((4, 10),) * 4),
        (f"student_{argument}", ((4, 8, 8, 3), (4, 8, 3), (4, 8, 8, 3), (4, 8, 3))),
        (f"teacher_{argument}", ((4, 8, 8, 3), (4, 8, 8, 3), (4, 8, 8, 3), (4, 64, 3))),
    )


E = np.exp(-1 / 8)

ROWS = (
    Row(
        "solution_flow",
        "features.flow",
        # pooled in a pair, in the second network only, on one axis each, not at all
        shapes=(
            ((5, 4, 3, 2), (5, 2, 2, 3), (5, 4, 3, 2), (5, 2, 2, 3)),
            ((3, 2, 2, 2), (3, 2, 2, 1), (3, 5, 3, 2), (3, 3, 2, 1)),
            ((3, 2, 4, 2), (3, 3, 2, 2), (3, 1, 2, 2), (3, 2, 1, 2)),
            ((4, 1, 1, 3),) * 4,
        ),
        call=layers,
        arguments=("student_pair", "student_pair", "teacher_pair", "teacher_pair"),
        perfect=agreeing,
        invariances={
            "mirror": mirror,
            "permuted channels": permute_channels,
            "both signs": lambda rng, a: (-a[0], -a[1], *a[2:]),
            "from one layer to the other": lambda rng, a: (a[0] * 4, a[1] / 4, a[2] / 2, a[3] * 2),
        },
        extremes=layer_extremes(),
        golden={"fsp": lambda m: lambda s0, s1, t0, t1: m.solution_flow((s0, s1), (t0, t1))},
        hand=(
            # G_s = [2, 1]ᵀ [1, 3], G_t = [1, 0]ᵀ [1, 1]: differences 1, 5, 1, 3; the gradient is ½ (G_s - G_t) [1, 3]ᵀ
            Hand(
                one_layer_each([[2.0, 1.0], [1.0, 3.0]], [[1.0, 0.0], [1.0, 1.0]]),
                [(1 + 25 + 1 + 9) / 4],
                np.array([8.0, 5.0]).reshape(1, 1, 1, 2),
            ),
        ),
        mismatches=mismatched("pair"),
        ranks=low_ranks("pair"),
        drawn=(
            ((3, 2, 3, 2), (3, 2, 2, 1), (3, 2, 2, 2), (3, 3, 2, 1)),
            ((3, 2, 2, 2), (3, 2, 1, 2), (3, 2, 2, 2), (3, 2, 1, 2)),
        ),
    ),
    Row(
        "singular_vectors",
        "features.flow",
        # more positions than channels, fewer, three layers with both
        shapes=(
            ((5, 3, 2, 3), (5, 3, 2, 2), (5, 3, 2, 3), (5, 3, 2, 2)),
            ((3, 2, 1, 3), (3, 2, 2, 3), (3, 2, 2, 3), (3, 3, 1, 3)),
            ((3, 3, 2, 2), (3, 2, 1, 4), (3, 2, 2, 2), (3, 2, 2, 2), (3, 2, 1, 4), (3, 5, 2, 2)),
            ((4, 1, 2, 2),) * 4,
        ),
        hyper=({}, {"rank": 2}),
        rounding=1e-6,
        call=layers,
        arguments=("student_maps", "student_maps", "teacher_maps", "teacher_maps"),
        perfect=agreeing,
        invariances={
            "scale and sign": scale_maps,
            "permuted positions": permute_positions,
            "permuted channels": permute_channels,
        },
        extremes=layer_extremes(),
        hand=(
            # one position: V is the unit vector. Differences of layers, student 1 - .6, 1 - .8, 0 - .6, 0 - .8,
            # teacher 0, 1, -1, 0
            Hand(
                one_layer_each([[3.0, 4.0], [5.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]),
                [sum((np.exp(-s * s / 8) - t) ** 2 for s, t in zip([0.4, 0.2, 0.6, 0.8], [1, E, E, 1], strict=True))],
            ),
        ),
        mismatches=mismatched("maps"),
        ranks=low_ranks("maps"),
        drawn=(
            ((3, 2, 2, 3), (3, 2, 1, 3), (3, 3, 1, 3), (3, 2, 2, 3)),
            ((3, 2, 2, 2), (3, 2, 1, 3), (3, 2, 2, 2), (3, 2, 1, 3)),
        ),
        valid=dominated,
    ),
)
