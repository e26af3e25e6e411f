"""Two real processes on loopback with two devices each: results of one process, and resumed runs."""

import os
import pickle
import re
import signal
import time

import chex
import jax
import numpy as np
import pytest

from jaxkd import parallel
from jaxkd.training import Checkpoints
from tests.parallel import hosts
from tests.training.toy import files, timeless

pytestmark = pytest.mark.slow

CLOSE = {"rtol": 2e-4, "atol": 5e-5}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


def results(what, directory):
    """Results of each of the two hosts."""
    directory.mkdir(exist_ok=True)
    with hosts.start(what, directory) as running:
        said, codes = running.wait()
    assert codes == [0, 0], "\n".join(said)
    found = [pickle.loads((directory / f"{rank}.pickle").read_bytes()) for rank in range(hosts.HOSTS)]
    return [(state, timeless(history)) for state, history in found] if what == "fit" else found


@pytest.fixture(scope="module")
def found(directory):
    return results("numbers", directory / "numbers")


@pytest.fixture(scope="module")
def straight(directory):
    """Results of an uninterrupted run."""
    return results("fit", directory / "straight")


@pytest.fixture(scope="module")
def kd():
    return hosts.distiller()


def together(step):
    """The batch of a step on one host."""
    first, second = hosts.parts(step)
    return {name: np.concatenate([first[name], second[name]]) for name in first}


def filled(step):
    """The same batch with each host's part padded, so that the devices have the same shares."""
    both = []
    for part in hosts.parts(step):
        missing = hosts.ROWS - len(part["index"])
        padding = {name: np.zeros((missing, *x.shape[1:]), x.dtype) for name, x in part.items()}
        full = {name: np.concatenate([x, padding[name]]) for name, x in part.items()}
        both.append(full | {"mask": np.arange(hosts.ROWS) < len(part["index"])})
    return {name: np.concatenate([part[name] for part in both]) for name in both[0]}


def test_all_hosts_have_equal_results(found, straight):
    chex.assert_trees_all_equal(found[0], found[1])
    chex.assert_trees_all_equal(straight[0], straight[1])


def test_ragged_parts_give_the_results_of_one_process(found, kd):
    expected = hosts.train(parallel.shard(kd, hosts.mesh()), filled)
    chex.assert_trees_all_close(found[0]["shard"], expected, **CLOSE)
    assert found[0]["shard"][1][0] != found[0]["shard"][1][1]


def test_fully_sharded_over_hosts_gives_the_results_of_one_device(found, kd):
    expected = hosts.train(parallel.jit(kd), together, evaluates=False)
    chex.assert_trees_all_close(found[0]["fully sharded"], expected, **CLOSE)
    assert found[0]["kernel"] == {(hosts.FEATURES, hosts.WIDTH // hosts.DEVICES)}


def test_pmap_over_hosts_gives_the_results_of_one_device(found, kd):
    expected = hosts.train(parallel.jit(kd, replicas=hosts.DEVICES), lambda _: together(0), steps=2, evaluates=False)
    chex.assert_trees_all_close(found[0]["pmap"], expected, **CLOSE)


def test_fit_over_hosts_gives_the_results_of_one_process(found, straight, kd):
    data, other = hosts.inputs()
    placed = parallel.shard(kd, hosts.mesh())
    resident = hosts.fit(None, placed, other, steps=2)  # rounding grows with the steps, as under pmap
    chex.assert_trees_all_close(found[0]["resident"], hosts.whole(resident.state), **CLOSE)
    streamed = hosts.fit(None, placed, data, other, steps=8)
    _, history = straight[0]
    assert [row["step"] for row in streamed.history] == [3, 6, 8]
    for row, expected in zip(history, timeless(streamed.history[:-1]), strict=False):
        assert row == pytest.approx(expected, rel=5e-3, abs=5e-4)
    found, expected = ({k: v for k, v in h[2].items() if "eval/" in k} for h in (history, streamed.history))
    assert found == pytest.approx(expected, rel=5e-3, abs=5e-4)


def test_invalid_uses_are_refused(found):
    assert "this host's part has 9 rows, and the hosts agreed on at most 8" in found[0]["too many"]
    assert "over the devices of all 2 hosts, got one on this host's devices only" in found[0]["alone"]
    assert "Place it last: parallel.shard(preprocess(kd), mesh)" in found[0]["wrapped"]


def test_only_one_process_writes_the_logs(directory, straight):
    lines = (directory / "straight/metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["step", *map(str, sorted({*range(3, 73, 3), *range(8, 73, 8)}))]


def reached(running, path):
    """Waits for a file while the hosts run, which give up after a time limit."""
    while not path.exists():
        assert all(process.poll() is None for process in running.processes), "\n".join(running.wait()[0])
        time.sleep(0.02)


def test_killed_and_preempted_run_resumes_to_the_uninterrupted_result(directory, straight, kd):
    run = directory / "run"
    run.mkdir()
    with hosts.start("fit", run) as running:
        reached(running, run / "checkpoints/8")
    assert {process.returncode for process in running.processes} == {-signal.SIGKILL}
    with hosts.start("fit", run) as running:
        reached(running, run / "checkpoints/16")
        os.kill(running.processes[1].pid, signal.SIGTERM)
        said, codes = running.wait()
    assert codes == [75, 75], "\n".join(said)
    with Checkpoints(run / "checkpoints") as checkpoints:
        assert 16 < checkpoints.latest() < 72
    chex.assert_trees_all_equal(results("fit", run), straight)
    for name in ("metrics.csv", "metrics.jsonl"):
        assert files(run)[name] == files(directory / "straight")[name]
    # A single process reads the checkpoint of two.
    with Checkpoints(run / "checkpoints") as checkpoints:
        restored = checkpoints.restore(kd.init(jax.random.key(1), hosts.rows(np.arange(2))))
    assert restored.step == 72
    chex.assert_trees_all_equal(hosts.whole(restored.state), straight[0][0])


def test_hosts_recognize_a_run_and_refuse_another(directory):
    both = results("identity", directory / "identity")
    for found in both:
        chex.assert_trees_all_equal(found["again"], found["equal"])
        assert found["steps"] == 24
        assert re.search(r"step: the programs differ first in .*stored .*0\.5.*, given .*0\.25", found["weight"])
        assert "data.train.first_and_last: stored" in found["data"]
        chex.assert_trees_all_equal(*found["own"])
        assert "data.train.2 processes: stored" in found["own data"]
    assert {name: both[0][name] for name in ("weight", "data", "own data")}.items() <= both[1].items()
