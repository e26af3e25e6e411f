"""Runs every Python block of the README and of a docs page, in order, in one namespace per page."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    "README.md",
    "docs/guides/add-a-loss.md",
    "docs/guides/models.md",
    "docs/guides/language.md",
    "docs/guides/training.md",
]
SLOW = ["docs/guides/control.md", "docs/guides/dense.md", "docs/guides/speech.md"]
BLOCK = re.compile(r"^(?P<skip><!-- no-test -->\n)?```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", [*PAGES, *(pytest.param(page, marks=pytest.mark.slow) for page in SLOW)])
def test_python_blocks_run(page, tmp_path, monkeypatch):
    if page == "docs/guides/control.md":
        pytest.importorskip("gymnax", reason="needs gymnax, which does not permit every version of JAX")
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [(text[: m.start("code")].count("\n"), m["code"]) for m in BLOCK.finditer(text) if not m["skip"]]
    assert blocks, f"{page} has no Python block to run"
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "page"}
    for line, code in blocks:
        # Leading blank lines give tracebacks the line numbers of the page.
        exec(compile("\n" * line + code, str(ROOT / page), "exec"), namespace)
