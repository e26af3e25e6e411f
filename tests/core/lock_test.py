"""The lock on a run's directory: refusal of a second run, stale files, systems without locks, full disks."""

import errno
import json
import os
import pathlib
import socket

import pytest

from jaxkd._core import lock
from jaxkd._core.lock import alone
from tests.training.toy import run


def test_second_run_is_refused_with_the_process_and_host_of_the_first(tmp_path):
    message = rf"another run is using .*/run \(process {os.getpid()} on {socket.gethostname()}\)\. Wait"

    def another(step, *_):
        before = sorted(path for path in tmp_path.rglob("*"))
        with pytest.raises(ValueError, match=message):
            run("resident", tmp_path / "run")
        assert before == sorted(path for path in tmp_path.rglob("*"))
        refused.append(step)

    refused: list = []
    run("resident", tmp_path / "run", steps=12, on_eval=another)
    assert refused == [6, 12]
    run("resident", tmp_path / "run", steps=18)


def test_content_of_a_stale_lock_file_never_blocks(tmp_path):
    for left in (json.dumps({"host": "elsewhere", "process": 1}), "", "torn {"):
        (tmp_path / ".lock").write_text(left)
        with alone(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


def test_lock_holds_while_its_file_is_empty(tmp_path):
    with alone(tmp_path):
        (tmp_path / ".lock").write_text("")
        with pytest.raises(ValueError, match=r"is using .*\d\. Wait until it ends"), alone(tmp_path):
            pass


def test_failed_run_releases_the_lock(tmp_path):
    with pytest.raises(ZeroDivisionError), alone(tmp_path):
        1 / 0  # noqa: B018
    with alone(tmp_path):
        pass
    assert not lock._held


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_file_system_without_locks_gives_a_warning(code, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="its file system has no locks .*only one run uses it"), alone(tmp_path):
        pass


def test_system_without_locks_gives_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with pytest.warns(UserWarning, match="this system has no file locks"), alone(tmp_path):
        pass


def test_full_disk_does_not_affect_the_lock(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.os, "write", full)
    with alone(tmp_path):
        assert (pathlib.Path(tmp_path) / ".lock").read_text() == ""
        with pytest.raises(ValueError, match="another run is using"), alone(tmp_path):
            pass


@pytest.mark.parametrize("kind", ["symbolic", "dangling", "hard", "fifo"])
def test_lock_file_that_may_be_another_file_is_refused_and_left_alone(kind, tmp_path):
    outside, directory = tmp_path / "outside", tmp_path / "run"
    directory.mkdir()
    outside.write_text("precious")
    if kind == "fifo":
        os.mkfifo(directory / ".lock")
    elif kind == "hard":
        os.link(outside, directory / ".lock")
    else:
        (directory / ".lock").symlink_to(outside if kind == "symbolic" else tmp_path / "missing")
    with pytest.raises(ValueError, match=r"\.lock: expected a regular file"), alone(directory):
        pass
    assert outside.read_text() == "precious"
    assert not (tmp_path / "missing").exists()
    assert not lock._held
