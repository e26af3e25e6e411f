"""What commands of experiments share: a folder that is one run's, programs that are past_probabilities, and how they
end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from jaxkd._core.files import write_atomically
from jaxkd.training import Preempted
from jaxkd.training import _run_identity as identity


class Refused(Exception):
    """The output folder cannot be used as it was asked for."""


def status(name: str, run: Callable[[], int]) -> int:
    """The exit status of a command: its own, 2 for what it refuses, 130 and 75 where it was interrupted.

    Args:
      name: of the command, the first word of what it says.
      run: what it does.
    """
    try:
        return run()
    except (Refused, ValueError, FileNotFoundError, ImportError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    except Preempted as stop:
        print(f"{name}: terminated; the same command goes on from here.", file=sys.stderr)
        return stop.code


@contextlib.contextmanager
def alone(out: pathlib.Path) -> Iterator[None]:
    """Holds the output folder for this process; the lock goes with the process, however that ends.

    Raises:
      Refused: another process holds it.
    """
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another run is at work in {out}; wait for it, or choose another --out.") from None
        yield


def remember_programs(folder: pathlib.Path) -> None:
    """Keeps what is compiled: trainings have pieces in common, and a run that goes on has all of them."""
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def same_run(out: pathlib.Path, settings: Mapping[str, Any], instead: str = "choose another --out") -> None:
    """Makes sure that what is in the output folder is of this run, and writes down what run this is.

    Args:
      out: the folder.
      settings: what makes the run this one.
      instead: what else one can do, for the message.

    Raises:
      Refused: it is of a run with other settings.
    """
    path = out / "config.json"
    if path.exists() and (different := identity.differences(json.loads(path.read_text()), dict(settings))):
        raise Refused(
            f"{out} holds a run with other settings:\n  "
            + "\n  ".join(different)
            + f"\nMake them equal to go on with it, {instead}."
        )
    write_atomically(path, json.dumps(settings, indent=2) + "\n")
