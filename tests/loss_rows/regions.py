"""Rows of `jaxkd.losses.dense.regions`."""

from collections.abc import Callable

import numpy as np

from tests.loss_changes import Arrays, mirror, permutation
from tests.loss_row import MAPS, Hand, Row, feature_extremes, normal


def regioned(rng: np.random.Generator, *shapes: tuple[int, ...]) -> Arrays:
    """Returns maps, and overlapping regions of about half of the positions, the first never empty."""
    *maps, regions = shapes
    some = rng.random(regions) < 0.5
    some[:, 0, :, 0] = True
    return (*normal(rng, *maps), some)


def permute_regions(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    *maps, regions = arrays
    return (*maps, regions[..., permutation(rng, regions.shape[-1])])


def permuted_moments(rng: np.random.Generator, arrays: Arrays) -> tuple[Arrays, Callable]:
    features, regions = arrays
    order = permutation(rng, regions.shape[-1])
    return (features, regions[..., order]), lambda result: result[:, order]


def moved(rng: np.random.Generator, arrays: Arrays) -> tuple[Arrays, Callable]:
    """Maps x to a x + b with a > 0 by channel: μ becomes a μ + b in a non-empty region, σ² becomes a² σ²."""
    features, regions = arrays
    a, b = rng.uniform(0.5, 2, size=features.shape[-1]), rng.normal(size=features.shape[-1])
    some = np.any(regions, axis=(1, 2))[..., None]

    def change(result: np.ndarray) -> np.ndarray:
        mean, variance, skewness = np.moveaxis(result, 2, 0)
        return np.stack([a * mean + b * some, a**2 * variance, skewness], axis=2)

    return (a * features + b, regions), change


def permute_channels(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Permutes each network's channels, in all regions alike."""
    *maps, regions = arrays
    return (*(array[..., permutation(rng, array.shape[-1])] for array in maps), regions)


def scale_maps(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    *maps, regions = arrays
    return (*(array * rng.uniform(0.1, 10) for array in maps), regions)


def stripes(batch: int) -> np.ndarray:
    """Returns regions of a 4 × 4 map: a row, half a map, one position, none, two equal ones."""
    regions = np.zeros((batch, 4, 4, 5), bool)
    regions[:, 0, :, 0] = True
    regions[:, :, 1:3, 1] = True
    regions[:, 2, 2, 2] = True
    regions[:, :, 1:3, 4] = True
    return regions


def region_extremes(networks: int) -> dict[str, Arrays]:
    cases = {name: (*arrays[:networks], stripes(5)) for name, arrays in feature_extremes(MAPS).items()}
    *maps, regions = cases["some duplicates"]
    every = np.arange(5).reshape(5, 1, 1, 1)
    return cases | {
        "no region": (*maps, regions & False),
        "no region in some images": (*maps, regions & (every > 2)),
        "one region": (*maps, regions[..., :1]),
        "single positions": (*maps, np.eye(16, dtype=bool).reshape(1, 4, 4, 16).repeat(5, 0)[..., 4:9]),
        "the whole map": (*maps, regions | True),
        "no regions at all": (*maps, regions[..., :0]),
    }


def one_region(*values: float) -> tuple[np.ndarray, np.ndarray]:
    return np.reshape(values, (1, 1, len(values), 1)), np.ones((1, 1, len(values), 1), bool)


ROWS = (
    Row(
        "region_moments",
        "dense.regions",
        shapes=(
            ((5, 3, 4, 2), (5, 3, 4, 3)),
            ((2, 4, 3, 3), (2, 4, 3, 2)),
            ((3, 1, 2, 1), (3, 1, 2, 1)),
        ),
        make=regioned,
        result=lambda arrays: (arrays[0].shape[0], arrays[1].shape[-1], 3, arrays[0].shape[-1]),
        invariances={"mirror": mirror},
        mapped={"permuted regions": permuted_moments, "moved": moved},
        extremes=region_extremes(1),
        rounding=1e-6,
        hand=(
            # mean 1, deviations -1, -1, 2; variance 2; the skewness is (-1 - 1 + 8) / 3 / 2√2
            Hand(one_region(0.0, 0.0, 3.0), [[[[1.0], [2.0], [0.5**0.5]]]], None),
            Hand(one_region(4.0, 6.0), [[[[5.0], [1.0], [0.0]]]], None),
            Hand(one_region(4.0), [[[[4.0], [0.0], [0.0]]]], [[[[1.0]]]]),
        ),
        identical_is_zero=False,
        per_example=False,
        mismatches=tuple(
            ("regions", shapes)
            for shapes in [
                ((4, 3, 3, 2), (1, 3, 3, 2)),
                ((4, 3, 3, 2), (4, 3, 1, 2)),
                ((4, 3, 3, 2), (4, 6, 6, 2)),
                ((4, 3, 3, 2), (4, 3, 3)),
            ]
        ),
        ranks=(("features", ((4, 3, 3), (4, 3, 3, 2))),),
        drawn=(((2, 2, 2, 2), (2, 2, 2, 2)), ((2, 1, 3, 1), (2, 1, 3, 3))),
    ),
    Row(
        "region_affinity",
        "dense.regions",
        shapes=(
            ((5, 3, 4, 2), (5, 3, 4, 3), (5, 3, 4, 4)),
            ((3, 4, 3, 3), (3, 4, 3, 2), (3, 4, 3, 2)),
            ((2, 2, 2, 1), (2, 2, 2, 2), (2, 2, 2, 3)),
            ((2, 5, 2, 2), (2, 2, 6, 3), (2, 4, 6, 2)),
        ),
        make=regioned,
        invariances={
            "permuted regions": permute_regions,
            "permuted channels": permute_channels,
            "scale": scale_maps,
            "mirror": mirror,
        },
        extremes=region_extremes(2),
        rounding=1e-6,
        hand=(
            # two single positions: means at 90° for the student, at 0° for the teacher; no variance, no skewness
            Hand(
                (
                    [[[[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]]]],
                    np.ones((1, 1, 3, 2)),
                    np.array([[[[True, False, False], [False, True, False], [False, False, False]]]]),
                ),
                [2 / (3 * 4)],
                None,
            ),
        ),
        mismatches=(
            ("teacher", ((4, 3, 3, 2), (1, 3, 3, 2), (4, 3, 3, 2))),
            ("regions", ((4, 3, 3, 2), (4, 3, 3, 5), (1, 3, 3, 2))),
            ("regions", ((4, 3, 3, 2), (4, 3, 3, 5), (4, 3, 3))),
        ),
        ranks=(("student", ((4, 3, 3), (4, 3, 3), (4, 3, 3, 2))),),
        drawn=(
            ((2, 3, 2, 2), (2, 3, 2, 3), (2, 3, 2, 2)),
            ((2, 2, 3, 2), (2, 2, 3, 2), (2, 2, 3, 3)),
        ),
    ),
)
