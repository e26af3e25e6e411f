"""Training seeds as one program equals training them in turn; the reported rows."""

import functools

import jax
import numpy as np
import pytest

from benchmarks import seeds
from jaxkd import data, distillers, models


@pytest.fixture(scope="module")
def case():
    images = data.from_arrays(
        np.random.default_rng(0).integers(0, 256, (24, 4, 4, 1), np.uint8),
        np.arange(24) % 3,
        num_classes=3,
        name="tiny",
    )
    augment = data.compose(
        functools.partial(data.shift, seed=0), functools.partial(data.normalize, mean=(0.5,), std=(0.5,))
    )
    return seeds.Case("tiny", models.MLP((4,), 3), models.MLP((5,), 3), images, augment, batch_size=8, steps=2)


@pytest.mark.slow
def test_both_sides_give_the_same_parameters(case, tmp_path):
    found, numbers = seeds.setting(case, tmp_path), [2, 5]
    one, other = (make(found, numbers) for make in (seeds.in_turn, seeds.vmapped))
    ends = []
    for side in (one, other):
        states = side.states
        for number in range(3):
            states = side.run(states, number)
        ends.append(states)
    for i in range(2):
        vmapped, expected = distillers.select_run(ends[1], i), ends[0][i]
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            vmapped.student.params,
            expected.student.params,
        )
    first, second = (jax.tree.leaves(state.student.params)[-1] for state in ends[0])
    assert np.abs(first - second).max() > 1e-2
    assert int(ends[1].step) == int(ends[0][0].step) == 3


@pytest.mark.slow
def test_row_has_costs_and_speeds(case, tmp_path):
    row = seeds.compare(case, range(3), rounds=2, directory=tmp_path)
    assert (row["case"], row["seeds"]) == ("tiny", 3)
    assert row["flops"][seeds.VMAPPED] == pytest.approx(row["flops"][seeds.IN_TURN], rel=0.05)
    assert row["temporary_bytes"].keys() == row["images_per_second"].keys() == {seeds.IN_TURN, seeds.VMAPPED}
    low, middle, high = row["speed_ratio"]
    assert 0 < low <= middle <= high


def test_cases_fill_a_batch():
    names = [case.name for case in seeds.cases(1, 1, 16)]
    assert len(names) == 3 and names[-1] == "resnet8, 32 x 32, batch 16"
    for case in seeds.cases(1, 1, 16):
        assert case.batch_size <= data.num_examples(case.dataset)
