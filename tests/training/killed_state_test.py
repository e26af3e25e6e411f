"""Runs with a bank, peers, moving averages or a sweep, killed by SIGKILL: they resume exactly."""

import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, data, distillers, losses, objectives, schemes, teachers, term
from jaxkd.training import fit
from tests import tiny
from tests.training.toy import bits, files, timeless

ROOT = pathlib.Path(__file__).parents[2]
RUN = """
import sys
from tests.training import killed_state_test as test
test.run(sys.argv[1], sys.argv[2], killed=int(sys.argv[3]))
"""
EXAMPLES = 21
"""Not a multiple of the batch size, so that the last batch of a pass is padded."""

CE = term(losses.cross_entropy, "student/logits", "batch/label")
KD = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=4.0)
ADAM = optax.adam(0.01)


def bank():
    crd = objectives.crd(
        "student/vector", "teacher/vector", np.arange(EXAMPLES) % tiny.CLASSES, negatives=5, embedding_size=3
    )
    queue = objectives.crd_queue("student/vector", "teacher/vector", queue_size=12, embedding_size=3)
    return jaxkd.distill(tiny.student, tiny.teacher(), combine(ce=CE, crd=crd, queue=queue), optimizer=ADAM)


def peers():
    return schemes.mutual({"a": tiny.student, "b": tiny.teacher_model}, own=CE, mutual=KD, optimizer=ADAM)


def averages():
    kd = jaxkd.distill(tiny.student, teachers.ema(tiny.student, decay=0.9), combine(ce=CE, kd=KD), optimizer=ADAM)
    return distillers.with_ema(kd, decay=0.8)


def sweep():
    def make(weight):
        kd = term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=weight)
        return jaxkd.distill(tiny.student, tiny.teacher(), combine(ce=CE, kd=kd), optimizer=ADAM)

    return distillers.sweep(make, weight=[0.5, 2.0])


DISTILLERS = {"bank": bank, "peers": peers, "averages": averages, "sweep": sweep}


def run(name, directory, killed=0):
    """Trains for 12 steps; the process ends by SIGKILL after an evaluation, if its step is `killed`."""

    def hook(step, *_):
        if step == killed:
            os.kill(os.getpid(), signal.SIGKILL)

    images = np.random.default_rng(0).normal(size=(EXAMPLES, 4, 4, 2)).astype(np.float32)
    train = data.Resident({"image": images, "label": np.arange(EXAMPLES) % tiny.CLASSES}, 8, seed=1)
    settings = {"steps": 12, "checkpoint_every": 4, "eval_every": 3, "log_every": 2, "chunk": 2}
    return fit(
        DISTILLERS[name](),
        train,
        key=jax.random.key(0),
        eval_data=train,
        on_eval=hook,
        directory=directory,
        progress=False,
        tensorboard=False,
        **settings,
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", DISTILLERS)
def test_killed_run_ends_as_one_that_is_not(name, tmp_path):
    expected = run(name, tmp_path / "whole")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": os.environ["XLA_FLAGS"]}
    for step in (6, 9):  # between checkpoints: steps are computed again
        command = [sys.executable, "-c", RUN, name, str(tmp_path / "killed"), str(step)]
        assert subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    found = run(name, tmp_path / "killed")
    assert bits(found.state) == bits(expected.state)
    assert timeless(found.history) == timeless(expected.history)
    assert files(tmp_path / "killed")["metrics.csv"] == files(tmp_path / "whole")["metrics.csv"]
