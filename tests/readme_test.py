"""Every Python block of the README runs, in order, in one namespace."""

import pathlib
import re

README = pathlib.Path(__file__).parents[1] / "README.md"
BLOCK = re.compile(r"^(?P<skip><!-- no-test -->\n)?```python\n(?P<code>.*?)^```", re.DOTALL | re.MULTILINE)


def test_the_blocks_run(tmp_path, monkeypatch):
    text = README.read_text(encoding="utf-8")
    blocks = [(text[: m.start("code")].count("\n"), m["code"]) for m in BLOCK.finditer(text) if not m["skip"]]
    assert blocks, "the README has no Python block to run"
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "readme"}
    for line, code in blocks:
        # Blank lines before it make a traceback's line numbers those of the README.
        exec(compile("\n" * line + code, str(README), "exec"), namespace)
