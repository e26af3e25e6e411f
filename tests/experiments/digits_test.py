"""The demo's command: what it leaves, what it refuses, and that a killed run ends as one that was not."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from experiments.digits.config import Config, checked
from experiments.digits.main import cli
from experiments.kit import files

ROOT = pathlib.Path(__file__).parents[2]
TINY = [
    *("--methods", "kd", "--seeds", "2", "--epochs", "4", "--teacher-epochs", "1", "--batch", "64"),
    *("--eval-every", "1", "--checkpoint-every", "1", "--student-widths", "2", "2", "--teacher-widths", "2", "2"),
]


def start(out, *arguments):
    # One device, and code that is compiled sooner rather than better.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    command = [sys.executable, "-m", "experiments.digits", "--out", str(out), *TINY, *arguments]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(out, *arguments):
    process = start(out, *arguments)
    printed, errors = process.communicate(timeout=300)
    return process.returncode, printed, errors


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("digits") / "whole"
    code, printed, errors = finish(out)
    assert code == 0, errors
    return out, printed


@pytest.mark.slow
def test_what_a_run_leaves(whole):
    out, printed = whole
    results = json.loads((out / "results.json").read_text())
    assert list(results) == ["methods", "teacher", "config", "versions"]
    assert list(results["methods"]) == ["student", "kd"]
    for found in [*results["methods"].values(), results["teacher"]]:
        for name in ("accuracy", "calibration_error"):
            assert len(found[name]) == 2 and all(0 <= value <= 1 for value in found[name])
        assert found["validation"]["step"] == sorted(found["validation"]["step"])
    assert len(results["methods"]["kd"]["agreement"]) == 2
    assert results["config"]["seeds"] == 2
    assert {"python", "jax", "flax"} <= set(results["versions"])
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "soft targets" in (out / "report.md").read_text()
    assert "ETA" in printed and "soft targets" in printed and "gain" in printed


@pytest.mark.slow
def test_a_killed_run_ends_as_one_that_was_not(whole, tmp_path):
    out = tmp_path / "killed"
    out.mkdir()
    shutil.copytree(whole[0] / ".compiled", out / ".compiled")
    process = start(out)
    deadline = time.monotonic() + 120
    while not any(path.name.isdigit() for path in out.glob("student/checkpoints/*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (out / "results.json").exists()
    code, _, errors = finish(out)
    assert code == 0, errors
    for name in ("results.json", "report.md", "curves.png"):
        assert (out / name).read_bytes() == (whole[0] / name).read_bytes(), name


@pytest.mark.slow
def test_a_finished_run_prints_its_table_again(whole, capsys, monkeypatch):
    monkeypatch.setattr("experiments.kit.command.remember_programs", lambda folder: None)
    written = (whole[0] / "results.json").stat().st_mtime_ns
    assert cli(["--out", str(whole[0]), *TINY]) == 0
    printed = capsys.readouterr().out
    assert "soft targets" in printed and "\nnothing was trained" in printed
    assert printed.endswith(f"\nreport   {whole[0]}/report.md\npicture  {whole[0]}/curves.png\n")
    assert (whole[0] / "results.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_other_settings_are_refused(whole, capsys):
    assert cli(["--out", str(whole[0]), *TINY, "--weights.kd", "3"]) == 2
    assert "weights.kd: 4.0 there, 3.0 here" in capsys.readouterr().err


@pytest.mark.slow
def test_two_runs_in_one_place_are_refused(whole, capsys):
    with files.claim(whole[0] / "run") as ours:
        assert ours
        assert cli(["--out", str(whole[0]), *TINY]) == 2
    assert "another run" in capsys.readouterr().err


def test_settings_that_cannot_be_run_are_refused():
    for wrong in (Config(seeds=1), Config(labels=5), Config(eval_every=3), Config(epochs=0)):
        with pytest.raises(ValueError, match="--"):
            checked(wrong)
    assert checked(Config(methods=("hint",))).methods == ("student", "hint")
