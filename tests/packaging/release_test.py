"""The sdist and the wheel: contents, metadata, and use of the installed wheel.

They are built here, or those of the folder that JAXKD_DIST names are checked (`make release-check`).
"""

import email
import os
import pathlib
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("release")]
ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
STEM = f"jaxkd_toolkit-{PROJECT['version']}"


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    if "JAXKD_DIST" in os.environ:
        return pathlib.Path(os.environ["JAXKD_DIST"]).resolve()
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist):
    return dist / f"{STEM}-py3-none-any.whl"


@pytest.fixture(scope="module")
def sdist(dist):
    return dist / f"{STEM}.tar.gz"


def sources():
    files = [path.relative_to(ROOT).as_posix() for path in (ROOT / "jaxkd").rglob("*") if path.is_file()]
    return {name for name in files if "__pycache__" not in name}


def test_both_and_nothing_else_are_built(dist, wheel, sdist):
    assert {path for path in dist.iterdir() if path.name != ".gitignore"} == {wheel, sdist}


def test_the_wheel_holds_the_package_alone(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    information = {name for name in names if name.startswith(f"{STEM}.dist-info/")}
    assert names - information == sources()
    assert "jaxkd/py.typed" in names
    assert {name.rpartition("/")[2] for name in information} == {"METADATA", "WHEEL", "RECORD", "LICENSE"}


def test_the_sdist_builds_the_wheel_and_holds_no_results(sdist):
    with tarfile.open(sdist) as archive:
        names = {member.name.removeprefix(f"{STEM}/") for member in archive.getmembers() if member.isfile()}
    own = {"README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE", "pyproject.toml", "PKG-INFO", ".gitignore"}
    assert names == sources() | own
    assert sdist.stat().st_size < 2e6


def test_the_metadata_is_valid_and_complete(wheel):
    metadata = pytest.importorskip("packaging.metadata")
    text = zipfile.ZipFile(wheel).read(f"{STEM}.dist-info/METADATA")
    found = metadata.Metadata.from_email(text, validate=True)  # raises for what an index would refuse
    assert found.name == PROJECT["name"] and str(found.version) == PROJECT["version"]
    assert found.license_expression == "Apache-2.0"
    assert found.description_content_type == "text/markdown"
    assert found.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert {"Homepage", "Documentation", "Issues", "Changelog"} <= set(found.project_urls)
    assert len(found.summary) <= 100
    message = email.message_from_bytes(text)
    assert "Typing :: Typed" in message.get_all("Classifier")
    # The build drops the marker of an extra that names an extra.
    for extra, requirements in PROJECT["optional-dependencies"].items():
        for requirement in (one for one in requirements if "python_version" in one):
            name, lines = requirement.partition(">")[0].partition(";")[0], message.get_all("Requires-Dist")
            kept = [line for line in lines if line.startswith(name) and f"extra == '{extra}'" in line]
            assert kept and all("python_version" in line for line in kept), requirement
    assert set(message.get_all("Provides-Extra")) == set(PROJECT["optional-dependencies"])


def test_the_installed_wheel_computes_the_loss_of_the_readme(wheel, tmp_path):
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    run = subprocess.run([*command, str(wheel)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = [sys.executable, str(ROOT / "tests" / "packaging" / "bare.py"), str(ROOT / "README.md")]
    run = subprocess.run(code, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"jaxkd {PROJECT['version']} from {tmp_path}/jaxkd: loss ")
