"""The cost of importing jaxkd, and the promises of pyproject.toml and the README."""

import importlib.metadata
import pathlib
import re
import stat
import subprocess
import sys
import tomllib

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CORE = {"jax", "flax", "optax", "orbax-checkpoint", "numpy", "jaxtyping", "rich", "safetensors", "flatbuffers"}


def printed(code):
    """Returns what code prints in a process of its own, where a warning is an error."""
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_import_loads_no_optional_library_and_no_backend():
    code = (
        "import sys, jaxkd; from jax._src import xla_bridge; "
        "heavy = {'tensorflow', 'tensorflow_datasets', 'grain', 'matplotlib', 'sklearn', 'tensorboardX', 'tyro', "
        "'orbax', 'orbax.checkpoint', 'flax', 'optax', 'rich', 'safetensors', 'jaxkd.data', "
        "'jaxkd.models', 'jaxkd.losses', 'jaxkd.training'}; "
        "print(sorted(heavy & set(sys.modules)), xla_bridge.backends_are_initialized())"
    )
    # No backend, so that a user can still configure devices or jax.distributed.
    assert printed(code) == "[] False"


@pytest.mark.slow
def test_a_package_is_imported_when_it_is_first_used():
    code = (
        "import sys, jaxkd; from jaxkd import losses; first = 'flax' in sys.modules; "
        "assert jaxkd.distill is jaxkd.distillers.distill and jaxkd.training.fit and jaxkd.data.load; "
        "assert set(jaxkd.__all__) <= set(dir(jaxkd)); "
        "print(first, 'orbax.checkpoint' in sys.modules, hasattr(jaxkd, 'nothing'))"
    )
    assert printed(code) == "False False False"


@pytest.mark.slow
def test_import_takes_a_small_part_of_the_time_of_flax_and_optax():
    code = (
        "import time; from time import process_time as now; a = now(); import flax, optax; b = now(); import jaxkd; "
        "c = now(); from jaxkd import *; print(b - a, c - b, now() - c)"
    )
    # Processor time, the least of three processes, so that other work on the machine matters little.
    runs = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True) for _ in range(3)]
    times = [[float(text) for text in run.stdout.split()] for run in runs]
    flax, front, everything = map(min, zip(*times, strict=True))
    assert front < 0.1 * flax
    assert everything < flax


def test_unrelated_distribution_of_the_same_import_name_is_refused(tmp_path):
    information = tmp_path / "jaxkd-0.0.5.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: jaxkd\nVersion: 0.0.5\n", encoding="utf-8")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import jaxkd"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 1
    assert "pip uninstall jaxkd jaxkd-toolkit" in run.stderr


def _names(requirements):
    return {"".join(c if c.isalnum() or c in "-_" else " " for c in text).split()[0] for text in requirements}


def test_core_dependencies_are_the_listed_ones():
    assert _names(PYPROJECT["project"]["dependencies"]) == CORE


def test_extras_include_each_other():
    extras = PYPROJECT["project"]["optional-dependencies"]
    assert "jaxkd-toolkit[data]" in extras["experiments"]
    assert {"jaxkd-toolkit[experiments]", "jaxkd-toolkit[docs]"} <= set(extras["dev"])
    assert {"tensorflow-datasets", "grain", "scikit-learn"} <= _names(extras["data"])


def test_version_is_the_distributions_and_types_are_shipped():
    import jaxkd

    version = PYPROJECT["project"]["version"]
    assert jaxkd.__version__ == version == importlib.metadata.version("jaxkd-toolkit")
    assert (ROOT / "jaxkd" / "py.typed").exists()


def test_version_and_date_are_those_of_the_changelog_and_the_citation():
    version = PYPROJECT["project"]["version"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    heads = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d{2}-\d{2}))?$", changelog, re.MULTILINE)
    assert heads[0] == ("Unreleased", "")
    assert heads[1][0] == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert citation["date-released"].isoformat() == heads[1][1]
    assert citation["license"] == PYPROJECT["project"]["license"]
    for head, _ in heads:
        assert f"\n[{head}]: https://" in changelog


def test_license_is_apache():
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_readme_names_the_two_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "make demo" in readme
    assert "make test" in readme


def test_ci_runs_lint_the_site_and_both_tiers():
    script = ROOT / ".ci" / "run"
    assert "for target in lint docs test test-slow" in script.read_text(encoding="utf-8")
    assert script.stat().st_mode & stat.S_IXUSR
