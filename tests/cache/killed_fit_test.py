"""A training on cached outputs that is killed ends as one that is not, bit for bit."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import data, losses, teachers
from jaxkd.distillers import preprocess
from jaxkd.training import fit
from tests.cache.toy import MODEL, SET, write
from tests.training.toy import files, timeless

ROOT = pathlib.Path(__file__).parents[2]
RUN = """
import pathlib, sys
from tests.cache import killed_fit_test as test
test.run(pathlib.Path(sys.argv[1]), sys.argv[2])
"""


def run(directory, mode, pause=0.02):
    """Writes or opens the cache, as every training script does, and trains."""
    cache = write(directory / "cache")
    loader = {"resident": data.Resident, "streaming": data.Stream}[mode](SET, 8, seed=3)
    kd = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=4.0)
    kd = jaxkd.distill(MODEL, teachers.cached(cache), kd, optimizer=optax.adam(0.01))
    kd = preprocess(kd, train_transform=cache.transform, eval_transform=cache.transform)
    attached = jaxkd.cache.attach(cache, loader)
    every = {"checkpoint_every": 3, "eval_every": 3, "log_every": 2}
    settings = {"steps": 60, "chunk": 3, "tensorboard": False, "progress": False, **every}
    settings |= {"eval_data": attached, "on_eval": lambda *_: time.sleep(pause), "directory": directory / "run"}
    return fit(kd, attached, key=jax.random.key(0), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_a_killed_run_ends_as_one_that_is_not(tmp_path, mode):
    expected = run(tmp_path / "whole", mode, pause=0)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ["XLA_FLAGS"]}
    environment["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path / "compiled")
    directory, drawn, killed = tmp_path / "killed", random.Random(mode), 0
    command = [sys.executable, "-c", RUN, str(directory), mode]
    while True:
        process = subprocess.Popen(command, env=environment, cwd=ROOT)
        start, limit = time.monotonic(), drawn.uniform(0.05, 0.4)
        known = len(list(directory.glob("run/checkpoints/*")))
        try:
            # Killed at a random moment: in the cache's shards first, between checkpoints later.
            while process.poll() is None and killed < 3:
                begun = directory.exists() if not killed else len(list(directory.glob("run/checkpoints/*"))) > known
                if begun or time.monotonic() - start > 60:
                    time.sleep(limit)
                    process.send_signal(signal.SIGKILL)
                    break
            code = process.wait(timeout=300)
        finally:
            process.kill()
            process.wait()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
    assert killed >= 2
    found = run(directory, mode, pause=0)  # restores the last step
    jax.tree.map(np.testing.assert_array_equal, found.state.student, expected.state.student)
    assert timeless(found.history) == timeless(expected.history)
    for name in ("metrics.csv", "metrics.jsonl"):
        assert files(directory / "run")[name] == files(tmp_path / "whole" / "run")[name]
