"""Two hosts of one job write one cache, and both open it."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from tests.cache.toy import files, write

ROOT = pathlib.Path(__file__).parents[2]
HOST = """
import pathlib, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]))
from tests.cache.toy import write
cache = write(pathlib.Path(sys.argv[3]))
print(jax.process_count(), cache.manifest["identity"]["contents"])
"""


@pytest.mark.slow
def test_two_hosts_write_the_same_files_as_one(tmp_path):
    one = write(tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOST, port, str(rank), str(tmp_path / "two")],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [process.communicate(timeout=180)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)
    assert all(text.splitlines()[-1] == f"2 {one.manifest['identity']['contents']}" for text in printed)
    assert files(tmp_path / "two") == files(tmp_path / "one")
