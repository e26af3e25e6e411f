"""The script of docs/guides/devices.md, run unmodified by two processes on loopback."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs/guides/devices.md").read_text(encoding="utf-8")
SCRIPT = re.compile(r"^```python\n(# distributed_example\.py\n.*?)^```", re.DOTALL | re.MULTILINE)
EXPORTS = re.compile(r"^export (JAX_PLATFORMS=.*)$", re.MULTILINE)


@pytest.mark.slow
def test_script_runs_on_two_hosts(tmp_path):
    script = tmp_path / "distributed_example.py"
    script.write_text(SCRIPT.search(PAGE)[1], encoding="utf-8")
    settings = dict(pair.split("=", 1) for pair in EXPORTS.search(PAGE)[1].split())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **settings}
    hosts = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "run"), f"localhost:{port}", "2", str(rank)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [host.communicate(timeout=300)[0] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
            host.communicate()
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(said)
    ends = [re.search(r"host (\d) of 2: (\d+\.\d+)", text) for text in said]
    assert [end[1] for end in ends] == ["0", "1"]
    assert ends[0][2] == ends[1][2]
    rows = (tmp_path / "run/metrics.csv").read_text().splitlines()
    assert float(rows[-1].split(",")[rows[0].split(",").index("eval/loss")]) == pytest.approx(
        float(ends[0][2]), abs=1e-4
    )
