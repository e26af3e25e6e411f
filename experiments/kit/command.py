"""The command line of an experiment: settings, exit statuses, workers, folders."""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from rich.console import Console

from experiments.kit import files
from jaxkd.training import Preempted, keep_freed_memory

Main = Callable[[Any, Console], int | None]


class Refused(Exception):
    """The output folder cannot be used with the settings that were given."""


def run(name: str, config: type[Any], main: Main, arguments: Sequence[str] | None = None, width: int = 140) -> int:
    import tyro  # an accelerator's machine may lack it, and uses the rest of this file

    settings = tyro.cli(config, args=arguments, prog=f"python -m experiments.{name}")
    sized = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Console(width=None if sized else width)
    keep_freed_memory()
    return status(name, lambda: main(settings, console))


def status(name: str, main: Callable[[], int | None]) -> int:
    """Returns the exit status: 2 for refused settings, 130 on Ctrl-C, 75 on SIGTERM."""
    try:
        return main() or 0
    except (Refused, ValueError, FileNotFoundError, ImportError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; run the same command again to resume.", file=sys.stderr)
        return 130
    except Preempted as stop:
        print(f"{name}: terminated; run the same command again to resume.", file=sys.stderr)
        return stop.code


def at_least(config: Any, *names: str, least: int = 1, why: str = "") -> None:
    """Raises unless settings, where they are given, are as large as they must be."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}{why}.")


def seeds(config: Any, least: int = 1) -> list[int]:
    """Returns the seeds of a configuration, which has ``seeds`` and ``first_seed``."""
    at_least(config, "seeds", least=least, why=": an interval needs several" if least > 1 else "")
    return list(range(config.first_seed, config.first_seed + config.seeds))


def plain(config: Any, *leave_out: str) -> dict[str, Any]:
    """Returns a configuration as JSON holds it, without some of its fields."""
    fields = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    return {name: value for name, value in fields.items() if name not in leave_out}


@contextlib.contextmanager
def own_folder(out: pathlib.Path, settings: Mapping[str, Any], instead: str = "choose another --out") -> Iterator[None]:
    """Holds the output folder of a run, whose settings are kept in ``config.json``."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "config.json"
    with files.claim(out / "run") as ours:
        if not ours:
            raise Refused(f"another run is at work in {out}; wait for its end, or choose another --out.")
        stored = json.loads(path.read_text()) if path.exists() else settings
        there, here = (flatten_dict(dict(one), sep=".") for one in (stored, settings))
        values = {name: (there.get(name, "nothing"), here.get(name, "nothing")) for name in sorted(there | here)}
        if different := [f"{name}: {a!r} there, {b!r} here" for name, (a, b) in values.items() if a != b]:
            listed = "\n  ".join(different)
            raise Refused(
                f"{out} holds a run with other settings:\n  {listed}\nMake them equal to resume it, {instead}."
            )
        files.write_json(path, settings, indent=2)
        remember_programs(out / ".compiled")
        yield


def remember_programs(folder: pathlib.Path) -> None:
    """Keeps compiled programs on disk, for later trainings and resumed runs."""
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


WORKER = "JAXKD_WORKER"
"""Environment variable of the processes that `spawn` starts: the CPU cores of the worker, separated by commas."""


def is_worker() -> bool:
    """Returns whether `spawn` started this process, which then writes no report."""
    return WORKER in os.environ


def spawn(name: str, arguments: Sequence[str], workers: int) -> None:
    """Runs a command in several processes and waits for them.

    On a CPU each process gets a share of the cores, since two processes of one core do more work than one of two.
    Elsewhere each gets one device.
    """
    if jax.default_backend() == "cpu":
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(workers))
        count, kind = len(cores), "cores"
        environments = [{WORKER: ",".join(map(str, cores[i::workers]))} for i in range(workers)]
    else:
        count, kind = len(jax.devices()), "devices"
        environments = [{WORKER: "", "CUDA_VISIBLE_DEVICES": str(i)} for i in range(workers)]
    if workers > count:
        raise ValueError(f"--workers: {workers} are more than the {count} {kind} there are.")
    command = [sys.executable, "-m", f"experiments.{name}", *arguments]
    started = [subprocess.Popen(command, env={**os.environ, **extra}) for extra in environments]

    def stop(signum: int, frame: Any) -> None:
        raise Preempted(0)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        codes = [process.wait() for process in started]
    except BaseException:  # a terminated worker saves its cell before it ends
        for process in started:
            process.terminate()
        for process in started:
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if any(codes):
        raise ValueError(f"--workers: processes ended with {codes}; finished cells are kept. Run the command again.")


def check_names(option: str, names: Iterable[str], available: Collection[str]) -> None:
    if unknown := [name for name in names if name not in available]:
        raise ValueError(f"{option}: expected some of {', '.join(available)}, got {', '.join(unknown)}.")


PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def packages(*more: str) -> dict[str, str]:
    """Returns the versions of Python, of `PACKAGES` and of further packages."""
    versions = {name: importlib.metadata.version(name) for name in (*PACKAGES, *more)}
    return {"python": platform.python_version()} | versions


def record(*more: str) -> dict[str, Any]:
    return {"device": jax.devices()[0].device_kind, "versions": packages(*more)}
