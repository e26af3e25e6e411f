"""The notebooks: executed from their sources, small, and with the outputs of the source beside them."""

import json
import pathlib
import runpy
import subprocess
import sys
import types

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "docs" / "notebooks"
build = types.SimpleNamespace(**runpy.run_path(str(FOLDER / "build.py")))
NAMES = [source.stem for source in build.sources()]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def kinds(cells):
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


def outputs(cells):
    return [output for cell in cells for output in cell.get("outputs", [])]


def test_there_are_three_notebooks():
    assert len(NAMES) == 3
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_that_of_its_source(name):
    path = FOLDER / f"{name}.ipynb"
    assert kinds(read(path)) == build.cells((FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    assert path.stat().st_size < 400_000, "reduce the size or the number of the figures"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_has_figures_and_no_messages_of_errors(name):
    found = outputs(read(FOLDER / f"{name}.ipynb"))
    assert any("image/png" in output.get("data", {}) for output in found)
    assert not [output for output in found if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert all(cell["execution_count"] for cell in read(FOLDER / f"{name}.ipynb") if cell["cell_type"] == "code")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_executes(name, tmp_path):
    for module in ("nbformat", "nbclient", "ipykernel"):
        pytest.importorskip(module, reason="needs the extra dev, with nbclient and ipykernel")
    command = [sys.executable, str(FOLDER / "build.py"), name, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(outputs(read(tmp_path / f"{name}.ipynb"))) >= len(outputs(read(FOLDER / f"{name}.ipynb")))
