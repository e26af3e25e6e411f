"""Agreement of two real processes on the step to stop at, on the checkpoint to use, and on the directory's lock."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

import jaxkd
from jaxkd._core.digests import find_damage
from jaxkd._core.lock import alone

QUESTIONS = 400


def member(address, index, folder):
    """One of the two processes."""
    import warnings

    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from jaxkd.training import CheckpointError, Checkpoints
    from jaxkd.training._process._preemption import catch_signals

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=index)
    found = {"process": jax.process_index(), "processes": jax.process_count()}
    try:
        with alone(folder / "taken"):
            found["taken"] = "ours"
    except ValueError as error:
        found["taken"] = str(error)
    everywhere = NamedSharding(jax.make_mesh((2,), ("data",)), PartitionSpec())
    with alone(folder), Checkpoints(folder / "checkpoints") as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, {"w": jax.jit(lambda: jnp.ones(3), out_shardings=everywhere)()}, best=1)
        (folder / f"up.{index}").touch()
        question = number = 0
        with catch_signals(every=4) as received:
            while question < QUESTIONS and not number:
                time.sleep(0.01 if index else 0.012)
                question, number = question + 1, received()
        found["stopped"] = question, number
    for damaged in (3, 2, 1):
        if index == 0:
            (folder / f"checkpoints/{damaged}/extra.json").write_bytes(b"")
        # New objects, which have not verified these checkpoints.
        with Checkpoints(folder / "checkpoints") as checkpoints, warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            try:
                found[f"without {damaged}"] = checkpoints.recover()
            except CheckpointError as error:
                found[f"without {damaged}"] = str(error)
        found[f"warned {damaged}"] = [str(one.message) for one in warned if "damaged" in str(one.message)]
    (folder / f"found.{index}").write_text(json.dumps(found))


def output(folder):
    return [(folder / f"log.{index}").read_text() for index in range(2)]


@pytest.mark.slow
def test_two_processes_agree(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    root = str(pathlib.Path(jaxkd.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    (tmp_path / "taken").mkdir()
    with alone(tmp_path / "taken"):
        logs = [(tmp_path / f"log.{index}").open("w+") for index in range(2)]
        processes = [
            subprocess.Popen(
                [sys.executable, __file__, address, str(index), str(tmp_path)], env=environment, stdout=out, stderr=out
            )
            for index, out in enumerate(logs)
        ]
        try:
            deadline = time.monotonic() + 120
            while not all((tmp_path / f"up.{index}").exists() for index in range(2)):
                assert time.monotonic() < deadline
                assert all(process.poll() is None for process in processes), output(tmp_path)
                time.sleep(0.05)
            processes[1].send_signal(signal.SIGTERM)  # only one of them receives the signal
            for process in processes:
                process.wait(120)
        finally:
            for process in processes:
                process.kill()
                process.wait()
            for file in logs:
                file.close()
    printed = output(tmp_path)
    assert [process.returncode for process in processes] == [0, 0], printed
    first, second = (json.loads((tmp_path / f"found.{index}").read_text()) for index in range(2))
    assert (first["process"], second["process"], second["processes"]) == (0, 1, 2)
    assert first["stopped"] == second["stopped"]
    assert first["stopped"][0] < QUESTIONS and first["stopped"][1] == signal.SIGTERM
    assert "terminated: saving" in printed[1] and "terminated" not in printed[0]
    assert f"(process {os.getpid()} on " in first["taken"]
    assert second["taken"].startswith("another run is using")
    for found in (first, second):
        assert (found["without 3"], found["without 2"]) == (2, 1)
    assert len(first["warned 3"]) == len(first["warned 2"]) == 1 and not second["warned 3"]
    assert "1: extra.json does not hold the bytes" in first["without 1"]
    assert "see the error of process 0" in second["without 1"]
    assert find_damage(tmp_path / "checkpoints/1")


if __name__ == "__main__":
    member(sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3]))
