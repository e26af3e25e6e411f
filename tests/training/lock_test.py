import errno
import json
import os
import pathlib
import socket

import pytest

from jaxkd.training import lock
from jaxkd.training.lock import alone
from tests.training.toy import run


def test_a_second_run_is_refused_by_the_name_of_the_first_and_the_first_goes_on(tmp_path):
    message = rf"another run is at work in .*/run \(process {os.getpid()} on {socket.gethostname()}\)\. Wait"

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


def test_what_is_in_the_file_never_blocks(tmp_path):
    for left in (json.dumps({"host": "elsewhere", "process": 1}), "", "torn {"):
        (tmp_path / ".lock").write_text(left)
        with alone(tmp_path):
            assert json.loads((tmp_path / ".lock").read_text())["process"] == os.getpid()


def test_a_holder_that_is_just_writing_its_name_is_respected_without_it(tmp_path):
    with alone(tmp_path):
        (tmp_path / ".lock").write_text("")
        with pytest.raises(ValueError, match=r"at work in .*\d\. Wait for its end"), alone(tmp_path):
            pass


def test_a_run_that_fails_lets_the_directory_go(tmp_path):
    with pytest.raises(ZeroDivisionError), alone(tmp_path):
        1 / 0  # noqa: B018
    with alone(tmp_path):
        pass
    assert not lock._held


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_said_and_does_not_stop_the_run(code, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="its file system has no locks .*only one run uses it"), alone(tmp_path):
        pass


def test_a_system_without_locks_is_said_as_well(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    with pytest.warns(UserWarning, match="this system has no file locks"), alone(tmp_path):
        pass


def test_a_full_disk_costs_the_name_and_not_the_lock(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lock.os, "write", full)
    with alone(tmp_path):
        assert (pathlib.Path(tmp_path) / ".lock").read_text() == ""
        with pytest.raises(ValueError, match="another run is at work"), alone(tmp_path):
            pass
