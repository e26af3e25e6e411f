import signal

import pytest

from jaxkd.training.checkpoint import Checkpoints
from tests.training.toy import files, run


@pytest.fixture(scope="session")
def straight(tmp_path_factory):
    """Runs that nothing interrupted: their results, files and checkpoints."""
    found = {}
    for mode in ("resident", "streaming"):
        directory = tmp_path_factory.mktemp(mode)
        result = run(mode, directory)
        with Checkpoints(directory / "checkpoints") as checkpoints:
            found[mode] = result, files(directory), checkpoints.steps()
    return found


@pytest.fixture(autouse=True)
def _ctrl_c_interrupts():
    """A shell that starts the tests in the background has them ignore Ctrl-C; what is tested is what a user sees."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
