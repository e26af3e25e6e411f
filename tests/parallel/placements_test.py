"""Equal results of all placements: losses, gradients, metrics, BatchNorm, banks and relations."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from jaxkd import parallel
from tests import tiny
from tests.parallel import hosts

SIZES = (16, 13, 3)  # 13 and 3 divide by nothing, and 3 leaves replicas empty


def mesh(devices, axes=("data",), shape=(-1,)):
    return Mesh(np.array(jax.devices()[:devices]).reshape(shape), axes)


def fully_sharded(kd, devices, **settings):
    rules = {"": parallel.fully_sharded(mesh(devices), min_size=8)}
    return parallel.shard(kd, mesh(devices), rules=rules, **settings)


PLACES = {
    "pmap": lambda kd, devices, **settings: parallel.pmap(kd, jax.devices()[:devices], **settings),
    "shard": lambda kd, devices, **settings: parallel.shard(kd, mesh(devices), **settings),
    "fully_sharded": fully_sharded,
}


@pytest.fixture(scope="module")
def kd():
    """BatchNorm, a relation, a bank; SGD with momentum, so that gradients are visible in the state."""
    return hosts.distiller()


@pytest.fixture(scope="module")
def expected(kd):
    """Memoized results of a number of replicas on one device."""
    found = {}

    def of(replicas):
        if replicas not in found:
            found[replicas] = run(parallel.jit(kd, replicas=replicas))
        return found[replicas]

    return of


def batch(step, size):
    """A batch with a mask of True, so that all sizes share one program."""
    return hosts.rows(np.random.default_rng(step).permutation(hosts.EXAMPLES)[:size]) | {"mask": np.ones(size, bool)}


def run(placed):
    state, found = placed.init(jax.random.key(1), batch(0, 16)), []
    for step, size in enumerate(SIZES):
        state, metrics = placed(state, batch(step, size))
        found.append(tiny.numbers(metrics))
    found.append(tiny.numbers(placed.evaluate(state, batch(9, 13))))
    return state, found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "devices", "replicas"),
    [
        *(pytest.param("pmap", *case, marks=pytest.mark.slow) for case in ((1, 8), (4, 1), (8, None))),
        *(pytest.param("shard", *case, marks=pytest.mark.slow) for case in ((1, 8), (4, 1))),
        ("shard", 8, None), ("fully_sharded", 2, 8), pytest.param("fully_sharded", 8, 1, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_every_placement_gives_the_results_of_one_device(kd, expected, place, devices, replicas):
    """Without a number of replicas, there is one per device."""
    state, found = run(PLACES[place](kd, devices, replicas=replicas))
    one, numbers = expected(replicas or devices)
    tiny.assert_close(state, one, rtol=5e-4, atol=5e-5)
    for row, wanted in zip(found, numbers, strict=True):
        assert row == pytest.approx(wanted, rel=2e-4, abs=1e-5)


@pytest.mark.slow
def test_results_depend_on_the_number_of_replicas(expected):
    """The tolerances above are small enough to detect another number of replicas."""
    one, eight = (expected(replicas)[0].student.state["batch_stats"]["norm"]["var"] for replicas in (1, 8))
    assert np.abs(np.asarray(one) - np.asarray(eight)).max() > 0.02
