"""The README: short, readable outside of the repository, and with a script that runs alone when it is copied."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)]+)\)")
OWN = re.compile(r"https://(?:github\.com/jaxkd/jaxkd/blob|raw\.githubusercontent\.com/jaxkd/jaxkd)/main/([^)#]+)")
EXTRAS = ("tensorflow_datasets", "grain", "sklearn", "matplotlib", "PIL", "tokenizers", "tyro", "pycocotools")

# Run before the script: what `pip install jaxkd-toolkit` does not install is not there.
BARE = f"""
import sys

sys.modules.update(dict.fromkeys({EXTRAS!r}))
exec(compile(open("script.py").read(), "script.py", "exec"), {{"__name__": "__main__"}})
"""


def script():
    return BLOCK.findall(TEXT)[1]


def test_the_readme_is_one_page():
    assert TEXT.count("\n") <= 130
    assert len(script().splitlines()) <= 25


def test_its_links_are_absolute_and_its_own_pages_exist():
    """A package index shows the page without the repository."""
    links = LINK.findall(TEXT)
    assert links
    assert all(link.startswith("https://") for link in links)
    own = [OWN.fullmatch(link)[1] for link in links if OWN.fullmatch(link)]
    assert len(own) > 15
    assert [target for target in own if not (ROOT / target).exists()] == []


@pytest.mark.slow
def test_the_script_runs_alone_without_any_extra(tmp_path):
    (tmp_path / "script.py").write_text(script(), encoding="utf-8")
    ours = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    environment = {key: value for key, value in os.environ.items() if key not in ours} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", BARE], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    teacher, student = map(float, done.stdout.splitlines()[-1].split())  # after the progress
    assert min(teacher, student) > 0.95
