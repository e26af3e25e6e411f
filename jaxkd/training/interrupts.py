"""Ctrl-C and SIGTERM, answered between two steps, where everything fits together and can be saved.

A signal is only noted when it comes, and asked for after each dispatch. With several processes, each may get it at
another step or not at all, and all must stop after the same: they agree on it, here and nowhere else.
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

__all__ = ["Preempted", "interrupts"]

TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h: the same command, run again, goes on


class Preempted(SystemExit):
    """The run got SIGTERM, was saved, and ends the process with exit status 75 unless it is caught.

    The same command goes on from there, so a script of a cluster can begin it again as long as the status is 75.

    Attributes:
      step: updates made.
      code: 75.
    """

    code: int

    def __init__(self, step: int) -> None:
        super().__init__(TEMPORARY_FAILURE)
        self.step = step


@contextlib.contextmanager
def interrupts(*, terminable: bool = True, every: int = 1) -> Iterator[Callable[[], int]]:
    """Turns the first Ctrl-C or SIGTERM into a question that can be asked; the second does what it usually does.

    Where somebody else handles a signal, or in another thread than the main one, nothing changes for it.

    Args:
      terminable: handle SIGTERM too. Where nothing can be saved, it should rather end the process at once.
      every: with several processes, which must all ask equally often, how many questions lie between two agreements.
        The answer is that of the agreement before the last one, so that nobody waits for the devices.

    Yields:
      What gives the number of the signal that came (the same in all processes, at the same question), or 0.

    >>> with interrupts() as asked:
    ...     asked()
    0
    """
    usual: dict[int, Any] = {signal.SIGINT: signal.default_int_handler}
    if terminable:
        usual[signal.SIGTERM] = signal.SIG_DFL
    if threading.current_thread() is not threading.main_thread():
        usual = {}
    ours = {number: handler for number, handler in usual.items() if signal.getsignal(number) is handler}
    came = 0

    def note(number: int, frame: Any) -> None:
        nonlocal came
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        if came:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        came = number
        what = "interrupted" if number == signal.SIGINT else "terminated"
        sys.stderr.write(f"\n{what}: saving after the steps under way; once more to stop without\n")

    agree = _Agreement(every) if jax.process_count() > 1 else None
    for number in ours:
        signal.signal(number, note)
    try:
        yield lambda: came if agree is None else agree(came)
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)


class _Agreement:
    """The largest of the processes' numbers, some questions late: sent off at one agreement, read at the next."""

    def __init__(self, every: int) -> None:
        mesh = Mesh(np.array(jax.devices()), ("all",))
        self._split = NamedSharding(mesh, PartitionSpec("all"))
        self._largest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._every, self._asked = every, 0
        self._sent: jax.Array | None = None

    def __call__(self, number: int) -> int:
        self._asked += 1
        if self._asked % self._every:
            return 0
        before, shape = self._sent, (jax.device_count(),)
        mine = np.full(1, number, np.int32)
        self._sent = self._largest(jax.make_array_from_callback(shape, self._split, lambda index: mine))
        return 0 if before is None else int(before)
