"""Handling of Ctrl-C and SIGTERM between two steps, where a run can be saved.

The handler only records a signal; the loop asks for it after each dispatch. In a run of several processes, a signal may
reach each at another step, or only one of them. All have to stop after the same step, because saving a checkpoint is a
collective operation; `catch_signals` is the one place where they agree on that step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h: running the same command again resumes the run


class Preempted(SystemExit):
    """The run received SIGTERM and was saved; the process exits with status 75.

    The same command resumes the run, so a cluster's script can start it again for as long as the status is 75.

    Attributes:
      step: number of updates made.
      code: exit status, 75.
    """

    code: int

    def __init__(self, step: int) -> None:
        super().__init__(TEMPORARY_FAILURE)
        self.step = step


@contextlib.contextmanager
def catch_signals(*, terminable: bool = True, every: int = 1) -> Iterator[Callable[[], int]]:
    """Records the first Ctrl-C or SIGTERM; a second one has its default effect.

    A signal for which the program has a handler of its own is left alone. Outside the main thread, where Python allows
    no handlers, nothing is recorded.

    Args:
      terminable: also record SIGTERM. Where nothing can be saved, SIGTERM should end the process at once.
      every: number of calls from one agreement of several processes to the next; all must call equally often. Each
        answer is that of the agreement before, so that no process waits for the devices.

    Yields:
      A function that returns the number of the signal received, or 0. All processes get the same answer at the same
      call.

    >>> with catch_signals() as received:
    ...     received()
    0
    """
    defaults: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    if terminable:
        defaults[signal.SIGTERM] = signal.SIG_DFL
    if threading.current_thread() is not threading.main_thread():
        defaults = {}
    replaced = {number: handler for number, handler in defaults.items() if signal.getsignal(number) is handler}
    recorded = 0

    def record(number: int, frame: Any) -> None:
        nonlocal recorded
        if recorded and number == signal.SIGINT:
            raise KeyboardInterrupt
        if recorded:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        recorded = number
        what = "interrupted" if number == signal.SIGINT else "terminated"
        sys.stderr.write(f"\n{what}: saving after the steps under way; repeat the signal to stop without saving\n")

    agree = _Agreement(every) if jax.process_count() > 1 else None
    for number in replaced:
        signal.signal(number, record)
    try:
        yield lambda: recorded if agree is None else agree(recorded)
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


class _Agreement:
    """Maximum of one number per process, dispatched at one call and read later."""

    def __init__(self, every: int) -> None:
        mesh = Mesh(np.array(jax.devices()), ("all",))
        self._split = NamedSharding(mesh, PartitionSpec("all"))
        self._maximum = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._every, self._calls = every, 0
        self._pending: jax.Array | None = None

    def __call__(self, number: int) -> int:
        self._calls += 1
        if self._calls % self._every:
            return 0
        previous, shape = self._pending, (jax.device_count(),)
        own = np.full(1, number, np.int32)
        self._pending = self._maximum(jax.make_array_from_callback(shape, self._split, lambda index: own))
        return 0 if previous is None else int(previous)
