"""The comparison with a hand-written step: both sides agree, and violated claims are reported."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import common, handwritten, step
from jaxkd import models


@pytest.fixture(scope="module")
def pair():
    random = np.random.default_rng(0)
    arrays = {
        "image": random.normal(size=(24, 6)).astype(np.float32),
        "label": random.integers(0, 3, 24).astype(np.int32),
    }
    return step.Pair(step.Case("tiny", models.MLP((4,), 3), models.MLP((5,), 3), "Hidden_0", arrays, 8, 3, 2, 1))


def test_both_sides_of_the_loop_give_the_same_parameters(pair):
    row = step.compare(pair.loops, rounds=2, steps=3, anew=2)
    assert row["traces"] == {"composed": 1, "handwritten": 1}
    states = {name: side.run(side.state, 0)[0] for name, side in pair.loops().items()}
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        states["composed"].student.params,
        states["handwritten"]["params"],
    )
    assert set(states) == set(row["milliseconds"]) == set(row["flops"])
    low, middle, high = row["speed_ratio"]
    assert 0 < low <= middle <= high


def test_composition_adds_no_flops(pair):
    composed = common.costs(pair.loops()["composed"].compiled)["flops"]
    assert composed == pytest.approx(common.costs(pair.compiled_with_the_same_losses())["flops"], rel=0.01)
    state, written = pair.handwritten(step.LIBRARY)
    twice = jax.jit(lambda *a: written(written(*a)[0], *a[1:])).lower(state, pair.teacher, pair.batch).compile()
    assert common.costs(twice)["flops"] > 1.5 * composed  # the tolerance would detect a second step


def test_epoch_traces_once_and_both_sides_agree(pair):
    row = step.compare(pair.scans, rounds=1, steps=3)
    assert row["traces"] == {"composed": 1, "handwritten": 1}
    assert pair.difference() < 1e-5


def test_epoch_has_every_row_once():
    def collect(state, teacher, batch):
        return state + batch["label"].sum(), batch["label"]

    epoch = handwritten.make_epoch(collect, 4)
    _, seen = epoch(np.int32(0), None, {"label": jnp.arange(12)}, jax.random.key(0))
    assert sorted(seen.reshape(-1).tolist()) == list(range(12)) != seen.reshape(-1).tolist()


def test_violated_claims_are_reported():
    row = {
        "case": "c",
        "mode": "loop",
        "flops": {"composed": 101.0, "handwritten": 100.0},
        "temporary_bytes": {"composed": 100, "handwritten": 100},
        "speed_ratio": [0.9, 0.97, 0.99],
    }
    assert step.broken(row) == ["c, loop: flops ratio 1.0100", "c, loop: speed ratio 0.970"]
    assert step.broken({**row, "mode": "scan", "speed_ratio": [0.9, 0.98, 0.99]}) == []


def test_quartiles_are_of_ratios_within_a_round():
    assert common.quartiles([1, 2, 9, 4, 10], [1, 1, 3, 1, 2]) == [2, 3, 4]
    assert common.quartiles([3], [2]) == [1.5, 1.5, 1.5]
