"""What every placement must give alike: losses, gradients, metrics, BatchNorm, banks and relations, on any devices."""

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
    """BatchNorm, a relation, a bank, momentum: plain gradient descent, so that a state shows its gradients."""
    return hosts.distiller()


@pytest.fixture(scope="module")
def expected(kd):
    """Memoised: what a number of replicas gives on one device."""
    found = {}

    def of(replicas):
        if replicas not in found:
            found[replicas] = run(parallel.jit(kd, replicas=replicas))
        return found[replicas]

    return of


def batch(step, size):
    """With a mask, though all counts: one program for all sizes."""
    return hosts.rows(np.random.default_rng(step).permutation(hosts.EXAMPLES)[:size]) | {"mask": np.ones(size, bool)}


def run(placed):
    state, found = placed.init(jax.random.key(1), batch(0, 16)), []
    for step, size in enumerate(SIZES):
        state, metrics = placed(state, batch(step, size))
        found.append(tiny.numbers(metrics))
    found.append(tiny.numbers(placed.evaluate(state, batch(9, 13))))
    return state, found


@pytest.mark.parametrize(
    ("place", "devices", "replicas"),
    [
        ("pmap", 1, 8), ("pmap", 4, 1), ("pmap", 8, None), ("shard", 1, 8), ("shard", 8, None), ("shard", 4, 1),
        ("fully_sharded", 2, 8), ("fully_sharded", 8, 1),
    ],
)  # fmt: skip
def test_every_placement_gives_the_numbers_of_one_device(kd, expected, place, devices, replicas):
    """Without a number of replicas, each device is one."""
    state, found = run(PLACES[place](kd, devices, replicas=replicas))
    one, numbers = expected(replicas or devices)
    tiny.assert_close(state, one, rtol=5e-4, atol=5e-5)
    for row, wanted in zip(found, numbers, strict=True):
        assert row == pytest.approx(wanted, rel=2e-4, abs=1e-5)


def test_replicas_matter(expected):
    """What the tolerances above can see."""
    one, eight = (expected(replicas)[0].student.state["batch_stats"]["norm"]["var"] for replicas in (1, 8))
    assert np.abs(np.asarray(one) - np.asarray(eight)).max() > 0.02
