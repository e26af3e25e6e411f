"""Fixtures of the tests of training."""

import signal

import pytest

from jaxkd.training import Checkpoints
from tests.training.toy import files, run


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """Results, files and checkpoint steps of uninterrupted runs."""
    found = {}
    for mode in ("resident", "streaming"):
        directory = tmp_path_factory.mktemp(mode)
        result = run(mode, directory)
        with Checkpoints(directory / "checkpoints") as checkpoints:
            found[mode] = result, files(directory), checkpoints.steps()
    return found


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts():
    """Restores the default handler of Ctrl-C, which a shell disables for background processes."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
