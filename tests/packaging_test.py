"""The layers, what an import costs, what pyproject.toml promises, what the Makefile does when things are missing."""

import ast
import importlib.metadata
import importlib.util
import pathlib
import shutil
import stat
import subprocess
import sys
import time
import tomllib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CORE = {"jax", "flax", "optax", "orbax-checkpoint", "numpy", "jaxtyping", "rich", "safetensors", "flatbuffers"}


# --- layers ----------------------------------------------------------------------------------------------------------

BASE = {"types", "checks", "normalization", "averaging", "progress"}
MAY_IMPORT = {
    "types": set(),
    "checks": {"types"},
    "normalization": {"types"},
    "averaging": {"types"},
    "progress": set(),
    "losses": set(),
    "adapters": BASE,
    "objectives": BASE | {"losses"},
    "teachers": BASE | {"losses", "adapters"},
    "training": BASE | {"losses", "adapters", "objectives", "teachers", "parallel"},
    "cache": BASE | {"adapters"},
    "parallel": BASE | {"losses", "adapters", "objectives", "teachers", "training"},
    "schemes": BASE | {"losses", "adapters", "objectives", "teachers", "training", "parallel"},
    "weights": BASE | {"adapters", "training"},
    "models": BASE | {"data"},
    "data": BASE | {"models"},
    "__init__": BASE
    | {"losses", "adapters", "objectives", "teachers", "training", "parallel", "schemes", "cache", "weights"},
}
MODULES = sorted((ROOT / "jaxkd").rglob("*.py"))
LOSSES = [path for path in MODULES if "losses" in path.parts and path.name != "__init__.py"]


def _name(path):
    return str(path.relative_to(ROOT))


def _layer(path):
    parts = path.relative_to(ROOT / "jaxkd").with_suffix("").parts
    return parts[0]


def _imports(path):
    """Every (dotted module, where) that a file imports: at its "top", "inner", or "typing", for a type checker only."""

    def visit(node, where):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, where) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    package = path.relative_to(ROOT).with_suffix("").parts[: -child.level]
                    base = ".".join([*package, *([base] if base else [])])
                # `from jaxkd import losses` imports a layer, `from jaxkd.losses import hint_mse` a name of one.
                yield from ((f"{base}.{alias.name}", where) for alias in child.names)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from visit(child, "inner")
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, "typing")
            else:
                yield from visit(child, where)

    return list(visit(ast.parse(path.read_text(encoding="utf-8")), "top"))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_nothing_imports_upwards(path):
    layer = _layer(path)
    assert layer in MAY_IMPORT, f"{_name(path)} is in no layer: give {layer!r} its place in MAY_IMPORT and in DESIGN"
    for module, _ in _imports(path):
        top, _, rest = module.partition(".")
        imported = rest.partition(".")[0]
        if top != "jaxkd" or imported == layer:
            continue
        if imported in MAY_IMPORT or (ROOT / "jaxkd" / imported).exists():
            assert imported in MAY_IMPORT[layer], f"{_name(path)} ({layer}) may not import {module}"
        else:  # jaxkd itself, or a name that jaxkd/__init__.py re-exports: that is the top layer
            pytest.fail(f"{_name(path)} imports {module} through the top of the package: import it from where it lives")


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_only_core_dependencies_are_imported_at_the_top(path):
    allowed = {"jaxkd", "orbax"} | CORE | sys.stdlib_module_names
    for module, where in _imports(path):
        top = module.partition(".")[0]
        assert top in allowed or where != "top", (
            f"{_name(path)} imports {top} at its top, which only an extra installs: import it inside the function"
        )


@pytest.mark.parametrize("path", LOSSES, ids=_name)
def test_a_file_of_losses_needs_only_jax_and_optax(path, monkeypatch):
    for module, where in _imports(path):
        top = module.partition(".")[0]
        alone = {"jax", "optax"} | sys.stdlib_module_names | ({"jaxtyping"} if where == "typing" else set())
        assert top in alone, f"{_name(path)} imports {module}: it could not be lifted out of the library"
    # And lifted out, it works.
    monkeypatch.setitem(sys.modules, "jaxkd", None)
    monkeypatch.setitem(sys.modules, "jaxtyping", None)
    spec = importlib.util.spec_from_file_location(f"lifted_{path.stem}", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def test_importing_jaxkd_is_light():
    code = (
        "import sys, jaxkd; from jax._src import xla_bridge; "
        "heavy = {'tensorflow', 'tensorflow_datasets', 'grain', 'matplotlib', 'sklearn', 'tensorboardX', 'tyro', "
        "'jaxkd.data', 'jaxkd.models'}; "
        "print(sorted(heavy & set(sys.modules)), xla_bridge.backends_are_initialized())"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    # No backend either: a user may still want to set up devices, or jax.distributed.
    assert run.stdout.strip() == "[] False"


# --- what pyproject.toml and the README promise ----------------------------------------------------------------------


def _names(requirements):
    return {"".join(c if c.isalnum() or c in "-_" else " " for c in text).split()[0] for text in requirements}


def test_core_dependencies_stay_few():
    assert _names(PYPROJECT["project"]["dependencies"]) == CORE


def test_extras_build_on_each_other():
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert "jaxkd-toolkit[data]" in extras["experiments"]
    assert "jaxkd-toolkit[experiments]" in extras["dev"]
    assert {"tensorflow-datasets", "grain", "scikit-learn"} <= _names(extras["data"])


def test_version_and_typing_marker():
    import jaxkd

    version = PYPROJECT["project"]["version"]
    assert jaxkd.__version__ == version == importlib.metadata.version("jaxkd-toolkit")
    assert (ROOT / "jaxkd" / "py.typed").exists()


def test_license_is_apache():
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_the_readme_names_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert "make --no-print-directory test" in script.read_text(encoding="utf-8")
    assert script.stat().st_mode & stat.S_IXUSR


# --- the Makefile, on a machine that is not what it hopes for --------------------------------------------------------

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
