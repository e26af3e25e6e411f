"""The Makefile on machines without a suitable Python, a network or an intact environment."""

import pathlib
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow

TOOLS = ["make", "sh", "cat", "echo", "mkdir", "mv", "rm", "sed", "tail"]

# Runs the Makefile's snippets of Python as another version, and simulates venv and pip.
FAKE_PYTHON = """
import os, pathlib, shutil, signal, sys, time, types
version, me, *args = sys.argv[1:]
if "-c" in args:
    sys.version_info = (*map(int, version.split(".")), "final", 0)
    sys._base_executable = me
    sys.modules["pip"] = types.ModuleType("pip")
    if os.path.exists("no-ensurepip"):
        sys.modules["ensurepip"] = None
    exec(args[args.index("-c") + 1])
elif args[:2] == ["-m", "venv"]:
    made = pathlib.Path(args[2], "bin")
    made.mkdir(parents=True)
    shutil.copy(me, made / "python")
elif args[:3] == ["-m", "pip", "install"]:
    with open("pip-calls", "a") as calls:
        calls.write(me + "\\n")
    while os.path.exists("slow"):
        time.sleep(0.01)
    if os.path.exists("pip-killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if os.path.exists("offline"):
        sys.exit("Looking in indexes: nowhere\\nERROR: No matching distribution found for jax")
else:
    print("ran", *args)
"""


class Machine:
    """A folder with the Makefile, and a PATH with make and given versions of Python."""

    def __init__(self, folder):
        self.tree, self.bin = folder / "a tree", folder / "bin"
        self.tree.mkdir()
        self.bin.mkdir()
        for name in ["Makefile", "pyproject.toml"]:
            shutil.copy(ROOT / name, self.tree)
        for tool in TOOLS:
            (self.bin / tool).symlink_to(shutil.which(tool))
        self.fake = folder / "fake.py"
        self.fake.write_text(FAKE_PYTHON, encoding="utf-8")

    def python(self, name, version):
        path = self.bin / name
        command = f'exec "{sys.executable}" -S -E "{self.fake}" {version} "$0" "$@"'
        path.write_text(f"#!/bin/sh\n{command}\n", encoding="utf-8")
        path.chmod(0o755)
        return self

    def make(self, *args):
        output, _ = (process := self.start(*args)).communicate()
        return process.returncode, output

    def start(self, *args):
        environment = {"PATH": str(self.bin), "HOME": str(self.tree), "LC_ALL": "C"}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(["make", *args], cwd=self.tree, env=environment, text=True, **pipes)

    def touch(self, name):
        (self.tree / name).touch()

    def remove(self, name):
        (self.tree / name).unlink()

    @property
    def installs(self):
        calls = self.tree / "pip-calls"
        return len(calls.read_text(encoding="utf-8").splitlines()) if calls.exists() else 0


@pytest.fixture
def machine(tmp_path):
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    return Machine(tmp_path)


def test_make_lists_its_targets_without_python(machine):
    code, output = machine.make()
    assert code == 0
    for target in ["demo", "cells", "test", "test-slow", "test-all", "test-oldest", "setup", "lint", "bench"]:
        assert f"\n  {target} " in output


@pytest.mark.parametrize(
    ("pythons", "args", "words"),
    [
        pytest.param({}, [], ["on PATH", "none at all"], id="none"),
        pytest.param({"python3": "3.8.18", "python": "2.7.18"}, [], ["python3 is 3.8", "python is 2.7"], id="old"),
        pytest.param({"python3": "3.11.7"}, ["PYTHON=python3.12"], ["PYTHON=python3.12", "does not run"], id="named"),
        pytest.param({"python3.10": "3.10.1"}, ["PYTHON=python3.10"], ["python3.10 is 3.10"], id="named-old"),
    ],
)
def test_missing_python_is_reported_in_one_line(machine, pythons, args, words):
    for name, version in pythons.items():
        machine.python(name, version)
    code, output = machine.make("test", *args)
    assert code != 0
    assert len(output.strip().splitlines()) == 1
    for word in ["Python >= 3.11", "make PYTHON=", *words]:
        assert word in output
    assert not list(machine.tree.glob(".venv*"))


def test_python_without_venv_is_reported_in_one_line(machine):
    machine.python("python3", "3.11.2").touch("no-ensurepip")
    code, output = machine.make("setup")
    assert code != 0
    assert "apt install python3.11-venv" in output
    assert len(output.strip().splitlines()) == 1


def test_newer_python_on_path_is_preferred_to_an_old_python3(machine):
    machine.python("python3", "3.9.1").python("python3.12", "3.12.1")
    code, output = machine.make("setup")
    assert code == 0, output
    assert "with Python 3.12" in output
    assert (machine.tree / ".venv").is_dir()


def test_setup_installs_once_and_after_changes_of_pyproject(machine):
    machine.python("python3", "3.11.7")
    code, output = machine.make("setup")
    assert (code, machine.installs) == (0, 1), output
    code, output = machine.make("test", "ARGS=-k one")
    assert (code, machine.installs) == (0, 1), output
    assert output.splitlines()[-1].startswith("ran -m pytest")

    machine.touch("pyproject.toml")
    machine.touch("offline")
    code, output = machine.make("setup")
    assert (code, machine.installs) == (2, 2), output
    assert "pyproject.toml has changed" in output

    machine.remove("offline")  # the environment is intact, and is updated
    code, output = machine.make("setup")
    assert (code, machine.installs) == (0, 3), output
    assert "making" not in output
    assert machine.make("setup") == (0, "")


def test_failed_installation_is_reported_and_repaired_by_the_next_run(machine):
    machine.python("python3", "3.11.7").touch("offline")
    code, output = machine.make("demo")
    assert code != 0
    assert "pip: ERROR: No matching distribution found for jax" in output
    assert "Check the network" in output
    assert "ran -m" not in output

    machine.remove("offline")
    code, output = machine.make("demo")
    assert code == 0, output
    assert ".venv is half-made" in output
    assert "ran -m experiments.digits" in output


def test_interrupted_update_is_repaired(machine):
    machine.python("python3", "3.11.7").make("setup")
    machine.touch("pyproject.toml")
    machine.touch("pip-killed")
    code, output = machine.make("setup")
    assert code != 0
    assert "pip was killed (signal 9)" in output
    machine.remove("pip-killed")
    code, output = machine.make("setup")
    assert code == 0, output
    assert "half-made" in output


def test_concurrent_runs_install_once(machine):
    machine.python("python3", "3.11.7").touch("slow")
    with machine.start("demo") as first:
        while not machine.installs:
            assert first.poll() is None, first.communicate()
            time.sleep(0.01)
        with machine.start("test") as second:
            assert "another make is setting up" in second.stdout.readline()
            machine.remove("slow")
            assert "ran -m pytest" in second.communicate()[0]
        assert "ran -m experiments.digits" in first.communicate()[0]
    assert (first.returncode, second.returncode, machine.installs) == (0, 0, 1)


def test_broken_environment_is_created_again(machine):
    machine.python("python3", "3.11.7")
    (machine.tree / ".venv" / "bin").mkdir(parents=True)
    code, output = machine.make("setup")
    assert code == 0, output
    assert "half-made" in output

    (machine.tree / ".venv" / "bin" / "python").unlink()
    code, output = machine.make("setup")
    assert code == 0, output
    assert "is broken" in output


def test_environment_created_by_others_is_completed(machine):
    machine.python("python3", "3.11.7").make("setup")
    for own in machine.tree.glob(".venv/.jaxkd*"):
        own.unlink()
    (machine.tree / ".venv" / "foreign").touch()
    code, output = machine.make("setup")
    assert (code, machine.installs) == (0, 2), output
    assert (machine.tree / ".venv" / "foreign").exists()


def test_copied_tree_creates_its_own_environment(machine):
    machine.python("python3", "3.11.7").make("setup")
    old = machine.tree
    machine.tree = shutil.copytree(old, old.with_name("copy"))
    code, output = machine.make("setup")
    assert code == 0, output
    assert f".venv was made in {old}" in output


def test_each_version_has_its_own_environment(machine):
    machine.python("python3", "3.11.7").python("python3.11", "3.11.7").python("python3.12", "3.12.1").make("setup")
    stamp = machine.tree / ".venv" / ".jaxkd-installed"
    before = stamp.stat().st_mtime_ns

    code, output = machine.make("test", "PYTHON=python3.12")
    assert (code, machine.installs) == (0, 2), output
    assert ".venv-3.12/bin/python -m pytest" in output
    assert stamp.stat().st_mtime_ns == before

    _, output = machine.make("test", "PYTHON=python3.11")
    assert ".venv/bin/python -m pytest" in output
    machine.python("python3", "3.12.1")  # the default version has changed
    _, output = machine.make("test")
    assert ".venv-3.12/bin/python -m pytest" in output
    assert machine.installs == 2


def test_environment_remains_after_python_on_path_changes(machine):
    machine.python("python3", "3.11.7").make("setup")
    machine.python("python3", "3.8.18")
    code, output = machine.make("test")
    assert code == 0, output
    assert machine.installs == 1
