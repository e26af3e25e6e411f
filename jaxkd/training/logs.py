"""Metrics on disk: ``metrics.csv`` for a spreadsheet, ``metrics.jsonl`` for a script, ``tensorboard/`` for the eye.

All three hold the same rows, one for each step at which something was logged, and nothing that depends on the clock,
so that the files of a run that died and went on are those of a run that never did.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import logging
import math
import os
import pathlib
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any

__all__ = ["Logs", "Row", "write_atomically"]

Row = Mapping[str, float]
"""``{"step": 100, "train/loss": 0.5, "eval/accuracy": 0.9, ...}``."""

_log = logging.getLogger(__name__)


class Logs:
    """The writer of the three. A row is on disk, whole, when `write` returns.

    >>> import tempfile
    >>> directory = tempfile.mkdtemp()
    >>> with Logs(directory, tensorboard=False) as logs:
    ...     logs.write({"step": 1, "train/loss": 0.5})
    ...     logs.write({"step": 2, "train/loss": 0.25, "eval/accuracy": 0.75})
    ...     logs.truncate(1)
    ...     logs.write({"step": 2, "train/loss": 0.25})
    >>> print(pathlib.Path(directory, "metrics.csv").read_text())
    step,train/loss
    1,0.5
    2,0.25

    Attributes:
      rows: what the files hold.
    """

    def __init__(
        self, directory: str | os.PathLike[str], rows: Iterable[Row] = (), *, tensorboard: bool | None = None
    ) -> None:
        """Makes the files hold exactly the rows given, whatever they held before.

        Args:
          directory: made if it is not there.
          rows: what is already known, as a checkpoint has it; later or torn lines of an earlier process go away.
          tensorboard: None writes for TensorBoard if tensorboardX is installed, and says so once if it is not.

        Raises:
          ImportError: ``tensorboard=True`` and tensorboardX is not installed.
        """
        self._directory = pathlib.Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.csv", "metrics.jsonl", "config.json", "tensorboard/events.*"):
            # What a process was writing when it was killed: nobody will ever rename it.
            folder, _, file = name.rpartition("/")
            for left in (self._directory / folder).glob(f".{file}.*.new"):
                left.unlink(missing_ok=True)
        self._use_tensorboard = _has_tensorboard(tensorboard)
        self.rows: list[Row] = []
        self._columns: list[str] = []
        self._csv: IO[str] | None = None
        self._jsonl: IO[str] | None = None
        self._events: Any = None
        self._open(list(rows))

    def write(self, row: Row) -> None:
        """Appends a row.

        A name that no earlier row has gives a new column; the CSV is then written anew, with empty cells above.

        Args:
          row: floats by name, with ``step``, which never decreases.

        Raises:
          ValueError: there is no step, or it is before the last row's.
          OSError: the disk is full, for instance. The rows before this one are there; what is there of this one goes
            away when the files are opened again.
        """
        if "step" not in row:
            raise ValueError(f"a row needs its 'step'; this one has {sorted(row)}.")
        if self.rows and row["step"] < self.rows[-1]["step"]:
            raise ValueError(
                f"step: got {row['step']} after a row of step {self.rows[-1]['step']}. Call truncate(step) to go back."
            )
        self.rows.append(row)
        try:
            self._append(row)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror or error}: the row of step {row['step']:g} could not be written. Those before it are "
                "there, and so are the checkpoints; once there is room, the same command goes on from the last of them",
                str(self._directory),
            ) from error

    def truncate(self, step: float) -> None:
        """Takes away every row after a step, from all files.

        Args:
          step: the last one that stays.
        """
        rows = [row for row in self.rows if row["step"] <= step]
        self.close()
        self._open(rows)

    def close(self) -> None:
        """Closes the files."""
        for file in (self._csv, self._jsonl, self._events):
            if file is not None:
                with contextlib.suppress(OSError):  # what could not be written before, and was reported, still cannot
                    file.close()
        self._csv = self._jsonl = self._events = None

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, row: Row) -> None:
        new = [name for name in row if name not in self._columns]
        if new:
            self._columns += new
            self._rewrite_csv()
        else:
            _put(self._csv, _csv_text(self._columns, [row]))
        _put(self._jsonl, _json_line(row))
        if self._use_tensorboard:
            if self._events is None:  # only now, so that a finished run that is opened again adds no file
                self._events = _open_events(self._directory / "tensorboard", int(row["step"]))
            _write_events(self._events, row)

    def _open(self, rows: list[Row]) -> None:
        self.rows = rows
        # In order of first appearance, so that a resumed run has the columns of one that was never interrupted.
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        self._rewrite_csv()
        path = self._directory / "metrics.jsonl"
        write_atomically(path, "".join(map(_json_line, rows)))
        self._jsonl = path.open("a", encoding="utf-8")
        if self._use_tensorboard:
            _truncate_events(self._directory / "tensorboard", int(rows[-1]["step"]) if rows else -1)

    def _rewrite_csv(self) -> None:
        if self._csv is not None:
            self._csv.close()
        path = self._directory / "metrics.csv"
        header = _csv_text(self._columns, [dict(zip(self._columns, self._columns, strict=True))]) if self.rows else ""
        write_atomically(path, header + _csv_text(self._columns, self.rows))
        self._csv = path.open("a", encoding="utf-8", newline="")


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file so that, whenever the process dies, the path holds the old content or the new, whole.

    Args:
      path: of the file.
      content: all of it.

    Raises:
      OSError: it cannot be written, because the disk is full for instance; the old content is still there.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "x.txt")
    >>> write_atomically(path, "whole")
    >>> path.read_text()
    'whole'
    """
    path = pathlib.Path(path)
    content = content.encode() if isinstance(content, str) else content
    if path.exists() and path.read_bytes() == content:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        what = f"{error.strerror or error}: it could not be written anew, and is as it was before"
        raise OSError(error.errno, what, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _put(file: IO[str] | None, text: str) -> None:
    if file is None:
        raise ValueError("these logs are closed.")
    file.write(text)
    file.flush()


def _csv_text(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue()


def _json_line(row: Row) -> str:
    # NaN and Infinity are not JSON: what reads lines of JSON elsewhere would stop at them.
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


@functools.cache
def _tell_once() -> None:
    _log.warning(
        "No TensorBoard files are written: tensorboardX is not installed (pip install tensorboardX). "
        "metrics.csv and metrics.jsonl hold the same numbers; tensorboard=False leaves out this note."
    )


def _has_tensorboard(wanted: bool | None) -> bool:
    if wanted is False:
        return False
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        if wanted:
            raise ImportError(
                "tensorboard=True needs tensorboardX: pip install tensorboardX, or leave tensorboard at None to write "
                "metrics.csv and metrics.jsonl only."
            ) from error
        _tell_once()
        return False
    return True


def _truncate_events(directory: pathlib.Path, last: int) -> None:
    """Takes every event after the step ``last`` away."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(directory.glob("events.*")):
        kept = b""
        for record in _records(path.read_bytes()):
            event = Event.FromString(record[12:-4])
            if not event.HasField("summary") or event.step <= last:
                kept += record
        write_atomically(path, kept)


def _open_events(directory: pathlib.Path, first: int) -> Any:
    """A new event file, in which the events from the step ``first`` will be."""
    # SummaryWriter hands events to a thread through a queue that its flush does not wait for, so what a killed process
    # had logged could be missing. The file writer below it writes at once.
    from tensorboardX.event_file_writer import EventsWriter

    directory.mkdir(exist_ok=True)
    # The name has the clock's second in it. A second process within it must not open the first one's file.
    return EventsWriter(str(directory / "events"), f".step{first}.{os.getpid()}.{time.monotonic_ns()}")


def _records(content: bytes) -> Iterator[bytes]:
    """The whole records of an event file: length, its checksum, the data, its checksum. A torn last one is left out."""
    start = 0
    while start + 12 <= len(content):
        (length,) = struct.unpack_from("<Q", content, start)
        end = start + 12 + length + 4
        if end > len(content):
            return
        yield content[start:end]
        start = end


def _write_events(events: Any, row: Row) -> None:
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary

    values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if name != "step"]
    with contextlib.suppress(ValueError):  # a NaN that protobuf refuses has no place in a plot either
        events.write_event(Event(wall_time=time.time(), step=int(row["step"]), summary=Summary(value=values)))
        events.flush()
