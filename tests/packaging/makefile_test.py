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

# Runs the Makefile's own snippets of Python, but as another version; makes environments and installs in no time.
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
    """A folder with the Makefile in it, and a PATH that holds make and the Pythons it is given."""

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
        said, _ = (process := self.start(*args)).communicate()
        return process.returncode, said

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


def test_make_lists_its_targets_without_any_python(machine):
    code, said = machine.make()
    assert code == 0
    for target in ["demo", "test", "setup", "lint", "bench"]:
        assert f"\n  {target} " in said


@pytest.mark.parametrize(
    ("pythons", "args", "words"),
    [
        pytest.param({}, [], ["on PATH", "none at all"], id="none"),
        pytest.param({"python3": "3.8.18", "python": "2.7.18"}, [], ["python3 is 3.8", "python is 2.7"], id="old"),
        pytest.param({"python3": "3.11.7"}, ["PYTHON=python3.12"], ["PYTHON=python3.12", "does not run"], id="named"),
        pytest.param({"python3.10": "3.10.1"}, ["PYTHON=python3.10"], ["python3.10 is 3.10"], id="named-old"),
    ],
)
def test_no_suitable_python_is_said_in_one_line(machine, pythons, args, words):
    for name, version in pythons.items():
        machine.python(name, version)
    code, said = machine.make("test", *args)
    assert code != 0
    assert len(said.strip().splitlines()) == 1
    for word in ["Python >= 3.11", "make PYTHON=", *words]:
        assert word in said
    assert not list(machine.tree.glob(".venv*"))


def test_a_python_that_cannot_make_environments_is_said_in_one_line(machine):
    machine.python("python3", "3.11.2").touch("no-ensurepip")
    code, said = machine.make("setup")
    assert code != 0
    assert "apt install python3.11-venv" in said
    assert len(said.strip().splitlines()) == 1


def test_an_old_python3_is_passed_over_for_a_newer_one_on_path(machine):
    machine.python("python3", "3.9.1").python("python3.12", "3.12.1")
    code, said = machine.make("setup")
    assert code == 0, said
    assert "with Python 3.12" in said
    assert (machine.tree / ".venv").is_dir()


def test_it_installs_once_and_again_when_pyproject_changes(machine):
    machine.python("python3", "3.11.7")
    code, said = machine.make("setup")
    assert (code, machine.installs) == (0, 1), said
    code, said = machine.make("test", "ARGS=-k one")
    assert (code, machine.installs) == (0, 1), said
    assert said.splitlines()[-1].startswith("ran -m pytest")

    machine.touch("pyproject.toml")
    machine.touch("offline")
    code, said = machine.make("setup")
    assert (code, machine.installs) == (2, 2), said
    assert "pyproject.toml has changed" in said

    machine.remove("offline")  # the environment outlived that, and is brought up to date
    code, said = machine.make("setup")
    assert (code, machine.installs) == (0, 3), said
    assert "making" not in said
    assert machine.make("setup") == (0, "")


def test_without_network_it_says_so_and_the_next_run_repairs(machine):
    machine.python("python3", "3.11.7").touch("offline")
    code, said = machine.make("demo")
    assert code != 0
    assert "pip: ERROR: No matching distribution found for jax" in said
    assert "Check the network" in said
    assert "ran -m" not in said

    machine.remove("offline")
    code, said = machine.make("demo")
    assert code == 0, said
    assert ".venv is half-made" in said
    assert "ran -m experiments.digits" in said


def test_an_interrupted_update_is_repaired(machine):
    machine.python("python3", "3.11.7").make("setup")
    machine.touch("pyproject.toml")
    machine.touch("pip-killed")
    code, said = machine.make("setup")
    assert code != 0
    assert "pip was killed (signal 9)" in said
    machine.remove("pip-killed")
    code, said = machine.make("setup")
    assert code == 0, said
    assert "half-made" in said


def test_two_at_once_install_once(machine):
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


def test_an_environment_that_cannot_run_is_made_again(machine):
    machine.python("python3", "3.11.7")
    (machine.tree / ".venv" / "bin").mkdir(parents=True)
    code, said = machine.make("setup")
    assert code == 0, said
    assert "half-made" in said

    (machine.tree / ".venv" / "bin" / "python").unlink()
    code, said = machine.make("setup")
    assert code == 0, said
    assert "is broken" in said


def test_an_environment_of_somebody_elses_is_completed_not_removed(machine):
    machine.python("python3", "3.11.7").make("setup")
    for own in machine.tree.glob(".venv/.jaxkd*"):
        own.unlink()
    (machine.tree / ".venv" / "theirs").touch()
    code, said = machine.make("setup")
    assert (code, machine.installs) == (0, 2), said
    assert (machine.tree / ".venv" / "theirs").exists()


def test_a_copied_tree_makes_its_own_environment(machine):
    machine.python("python3", "3.11.7").make("setup")
    old = machine.tree
    machine.tree = shutil.copytree(old, old.with_name("copy"))
    code, said = machine.make("setup")
    assert code == 0, said
    assert f".venv was made in {old}" in said


def test_each_version_has_its_own_environment(machine):
    machine.python("python3", "3.11.7").python("python3.11", "3.11.7").python("python3.12", "3.12.1").make("setup")
    stamp = machine.tree / ".venv" / ".jaxkd-installed"
    before = stamp.stat().st_mtime_ns

    code, said = machine.make("test", "PYTHON=python3.12")
    assert (code, machine.installs) == (0, 2), said
    assert ".venv-3.12/bin/python -m pytest" in said
    assert stamp.stat().st_mtime_ns == before

    _, said = machine.make("test", "PYTHON=python3.11")
    assert ".venv/bin/python -m pytest" in said
    machine.python("python3", "3.12.1")  # the default has moved on
    _, said = machine.make("test")
    assert ".venv-3.12/bin/python -m pytest" in said
    assert machine.installs == 2


def test_an_environment_outlives_the_python_on_path(machine):
    machine.python("python3", "3.11.7").make("setup")
    machine.python("python3", "3.8.18")
    code, said = machine.make("test")
    assert code == 0, said
    assert machine.installs == 1
