"""Files that processes share: locks, atomic writes, results computed once."""

import contextlib
import fcntl
import json
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from jaxkd.training import write_atomically


@contextlib.contextmanager
def claim(path: pathlib.Path, wait: bool = False) -> Iterator[bool]:
    """Locks a path until the block or the process ends, by ``NAME.lock`` beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                yield False
                return
            print(f"waiting for another process that is at work on {path}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield True


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Writes a file and its folder; a reader sees the old content or all of the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def write_json(path: pathlib.Path, content: Any, indent: int | None = None) -> None:
    write(path, json.dumps(content, indent=indent) + "\n")


def once(path: pathlib.Path, compute: Callable[[], Any], indent: int | None = None) -> Any:
    """Returns the content of a JSON file, computed first if it does not exist."""
    if not path.exists():
        write_json(path, compute(), indent)
    return json.loads(path.read_text())
