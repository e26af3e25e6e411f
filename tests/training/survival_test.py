"""Resuming in real processes: SIGKILL at any moment, SIGTERM, a full disk, another run in the directory."""

import contextlib
import csv
import json
import os
import random
import signal
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxkd._core.lock import alone
from jaxkd.training import Checkpoints
from jaxkd.training._process._preemption import TEMPORARY_FAILURE
from tests.training.toy import timeless
from tests.training.victims import SETTINGS, STEPS, Nursery

EVERY = SETTINGS["checkpoint_every"]


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    nursery = Nursery(tmp_path_factory.mktemp("nursery"))
    yield nursery
    nursery.close()


@pytest.fixture(scope="module")
def straight(nursery):
    """Files and arrays of uninterrupted runs, by mode."""
    found = {}

    def of(mode):
        if mode not in found:
            directory = nursery.folder / f"straight-{mode}"
            nursery.start(mode, directory)
            assert nursery.wait() == 0, log(directory)
            found[mode] = everything(directory)
        return found[mode]

    return of


def log(directory):
    path = directory.with_name(directory.name + ".log")
    return path.read_text() if path.exists() else ""


def everything(directory):
    """The content of the log files, the bytes of every array of the last state, and its snapshot, without times."""
    with (directory / "metrics.csv").open() as file:
        table = timeless(csv.DictReader(file))
    lines = timeless(map(json.loads, (directory / "metrics.jsonl").read_text().splitlines()))
    files = {"table": table, "lines": lines, "config": (directory / "config.json").read_bytes()}
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as orbax:
        items = ocp.args.Composite(state=ocp.args.StandardRestore())
        read = orbax.restore(directory / "checkpoints" / str(STEPS), args=items)
    state = {}

    def collect(tree, name):
        for key, value in tree.items():
            collect(value, f"{name}/{key}") if isinstance(value, dict) else state.update({f"{name}/{key}": value})

    collect(read.state, "")
    assert {
        "/student/params/w",
        "/objective/params/hint/kernel",
        "/opt_state/objective/0/mu/hint/kernel",
        "/key",
    } < set(state)
    arrays = {name: (str(value.dtype), value.shape, np.asarray(value).tobytes()) for name, value in state.items()}
    extra = json.loads((directory / "checkpoints" / str(STEPS) / "extra.json").read_text())
    extra["extra"]["history"] = timeless(extra["extra"]["history"])
    return files | {"state": arrays, "extra": extra}


def steps_of(directory):
    with contextlib.suppress(FileNotFoundError):
        return sorted(int(name) for name in os.listdir(directory / "checkpoints") if name.isdigit())
    return []


def saving(directory):
    """Returns whether an incomplete checkpoint exists."""
    with contextlib.suppress(FileNotFoundError):
        return any("unfinished" in name for name in os.listdir(directory / "checkpoints"))
    return False


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.001)


def until_saved(directory, step):
    until(lambda: max(steps_of(directory), default=0) >= step)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "kills"),
    [
        pytest.param("resident", 2, id="resident-quick"),
        pytest.param("resident", 13, marks=pytest.mark.slow),
        pytest.param("streaming", 8, marks=pytest.mark.slow),
    ],
)
def test_run_resumes_exactly_after_sigkill_at_any_moment(mode, kills, nursery, straight, tmp_path):
    """Every second kill happens while a checkpoint is being written."""
    directory, draw, within_a_save = tmp_path / "run", random.Random(mode), 0
    for kill, step in enumerate(sorted(draw.sample(range(0, STEPS - 2 * EVERY, EVERY), kills))):
        process = nursery.start(mode, directory)
        until_saved(directory, step)
        if kill % 2:
            until(lambda: saving(directory))
            time.sleep(draw.uniform(0, 0.02))
        else:
            time.sleep(draw.uniform(0, 0.3))
        os.kill(process, signal.SIGKILL)
        assert nursery.wait() == -signal.SIGKILL, log(directory)
        within_a_save += saving(directory)
    nursery.start(mode, directory)
    assert nursery.wait() == 0, log(directory)
    assert within_a_save >= kills // 4
    assert everything(directory) == straight(mode)
    assert not saving(directory)
    assert not list(directory.glob("checkpoints/*.corrupt"))  # a killed process leaves no checkpoint that looks damaged


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["resident", pytest.param("streaming", marks=pytest.mark.slow)])
def test_sigterm_saves_and_ends_with_status_75(mode, nursery, straight, tmp_path):
    directory = tmp_path / "run"
    process = nursery.start(mode, directory)
    until_saved(directory, 2 * EVERY)
    os.kill(process, signal.SIGTERM)
    assert nursery.wait() == TEMPORARY_FAILURE == 75, log(directory)
    assert "terminated: saving" in log(directory)
    assert "Traceback" not in log(directory)
    assert 2 * EVERY <= steps_of(directory)[-1] < STEPS
    nursery.start(mode, directory)
    assert nursery.wait() == 0, log(directory)
    assert everything(directory) == straight(mode)


@pytest.mark.slow
def test_second_sigterm_ends_the_process_at_once(nursery, tmp_path):
    directory = tmp_path / "run"
    nursery.start("resident", directory, on_eval="twice")
    assert nursery.wait() == -signal.SIGTERM
    assert steps_of(directory) == [3, 6]


@pytest.mark.slow
def test_full_disk_during_a_checkpoint_loses_nothing(nursery, straight, tmp_path):
    directory = tmp_path / "run"
    nursery.start("resident", directory, settings={"steps": 24})
    assert nursery.wait() == 0
    before = steps_of(directory)
    rows = (directory / "metrics.csv").read_bytes()
    # Room for log files, but not for the description of the arrays.
    nursery.start("resident", directory, full_beyond=5000)
    assert nursery.wait() == 1
    assert f"of step 27 could not be written to {directory}/checkpoints: File too large. The existing" in log(directory)
    assert "the same command then resumes" in log(directory)
    assert "Event loop is closed" not in log(directory)
    assert steps_of(directory) == before
    assert not saving(directory)
    with Checkpoints(directory / "checkpoints") as checkpoints:
        assert not any(checkpoints.damage(step) for step in before)
    assert (directory / "metrics.csv").read_bytes().startswith(rows)
    nursery.start("resident", directory)
    assert nursery.wait() == 0, log(directory)
    assert everything(directory) == straight("resident")


@pytest.mark.slow
def test_full_disk_during_a_row_loses_nothing(nursery, straight, tmp_path):
    directory, settings = tmp_path / "run", {"checkpoint_every": STEPS // 2, "best": None}
    whole = tmp_path / "whole"
    nursery.start("streaming", whole, settings=settings)
    assert nursery.wait() == 0, log(whole)
    size = len((whole / "metrics.jsonl").read_bytes())
    # Room for all but the end of the last row; the arrays are smaller than the log files.
    nursery.start("streaming", directory, full_beyond=size - 200, settings=settings)
    assert nursery.wait() == 1
    assert "the row of step" in log(directory) and "could not be written" in log(directory)
    assert not (directory / "metrics.jsonl").read_bytes().endswith(b"\n"), "the last row must be incomplete"
    assert STEPS // 2 in steps_of(directory)
    nursery.start("streaming", directory, settings=settings)
    assert nursery.wait() == 0, log(directory)
    assert everything(directory) == everything(whole)


@pytest.mark.slow
def test_second_run_in_a_directory_is_refused_until_the_first_is_dead(nursery, tmp_path):
    directory = tmp_path / "run"
    process = nursery.start("resident", directory, on_eval="orphan")
    try:
        until_saved(directory, 2 * EVERY + EVERY)
        with (
            pytest.raises(ValueError, match=rf"another run is using .* \(process {process} on .+\)"),
            alone(directory),
        ):
            pass
    finally:
        os.kill(process, signal.SIGKILL)
    assert nursery.wait() == -signal.SIGKILL
    # The lock file still exists, and a child of the run is alive.
    assert (directory / ".lock").exists()
    with alone(directory):
        pass
