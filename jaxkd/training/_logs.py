"""Logging of metrics: packed arrays to rows of means, and rows to files.

The files are ``metrics.csv`` for spreadsheets, ``metrics.jsonl`` for scripts, and ``tensorboard/``. All three hold the
same rows, one for each step at which something was logged. Except for the columns ``seconds``, ``examples_per_second``
and ``tokens_per_second``, the files of a resumed run equal those of a run that was never interrupted.
"""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
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

import numpy as np

from jaxkd._core.batches import is_unseen_metric
from jaxkd._core.files import check_inside, write_atomically
from jaxkd.cache import StaleCacheError
from jaxkd.metrics import Packed, compute
from jaxkd.training._cadence import Cadence
from jaxkd.training._clock import SPEED, TOKEN_SPEED, Clock

Row = Mapping[str, float]
"""``{"step": 100, "train/loss": 0.5, "eval/accuracy": 0.9, ...}``."""

_log = logging.getLogger(__name__)


class NonFiniteError(FloatingPointError):
    """The loss became NaN or infinite.

    Attributes:
      step: number of updates made, including the one that is not finite.
      terms: names of the metrics of that update that are not finite, the loss itself last.
      indices: ``batch["index"]`` of that update without masked examples; None if batches have no index. In a run of
        several processes, each has the indices of its own part of the batch.
    """

    def __init__(self, message: str, step: int, terms: tuple[str, ...], indices: np.ndarray | None = None) -> None:
        super().__init__(message)
        self.step, self.terms, self.indices = step, terms, indices


_TABLES = ("metrics.csv", "metrics.jsonl")
_OWN_EVENTS = "tensorboard/events.*.jaxkd.step*"  # other programs may write files of their own there


def find_logs(directory: pathlib.Path) -> list[str]:
    """Returns the names of the log files in a directory that hold anything.

    >>> import tempfile
    >>> find_logs(pathlib.Path(tempfile.mkdtemp()))
    []
    """
    paths = [*map(directory.joinpath, _TABLES), *sorted(directory.glob(_OWN_EVENTS))]
    return [path.relative_to(directory).as_posix() for path in paths if path.is_file() and path.stat().st_size]


class RowAccumulator:
    """Turns the metrics of single steps into rows of means over several steps.

    It holds the metrics of steps that the device has not finished, and the sums of the row that is not complete. Sums
    are float64 on the host, added step by step, so that a row does not depend on how steps were grouped in dispatches.

    >>> from jaxkd.metrics import pack
    >>> from jaxkd.types import Mean
    >>> rows = RowAccumulator(Cadence(steps=3, log_every=2), steps_per_epoch=2)
    >>> for step in range(3):
    ...     rows.add(step, pack({"loss": Mean(float(step), 1.0)}), 1)
    >>> list(rows.complete())
    [{'step': 2, 'epoch': 1.0, 'train/loss': 0.5}, {'step': 3, 'epoch': 1.5, 'train/loss': 2.0}]
    """

    def __init__(
        self,
        cadence: Cadence,
        steps_per_epoch: int,
        partial_row: Mapping[str, list[float]] | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Starts with an empty row, or with the `partial_row` of a checkpoint.

        With a clock, rows hold the speed of the training.
        """
        self._cadence, self._steps_per_epoch, self._clock = cadence, steps_per_epoch, clock
        self._in_flight: collections.deque[tuple[int, Packed, int]] = collections.deque()
        restored = {name: np.array(both, np.float64).reshape(2, -1) for name, both in (partial_row or {}).items()}
        self._layout = Packed(np.zeros((2, 0)), tuple(n for n, sums in restored.items() for _ in range(sums.shape[1])))
        self._sums = np.concatenate([np.zeros((2, 0)), *restored.values()], axis=1)

    def add(self, first: int, packed: Packed, count: int) -> None:
        """Adds the metrics of some steps, without waiting for the device.

        The last ``count`` entries of ``packed``, ``[..., 2, names]``, are those of the steps after step ``first``.
        """
        packed.array.copy_to_host_async()
        self._in_flight.append((first, packed, count))

    def complete(self, in_flight: int = 0) -> Iterator[dict[str, float]]:
        """Yields the complete rows, without waiting for the last ``in_flight`` additions.

        A row holds ``step``, ``epoch`` and the means over its steps, named ``train/...``.

        Raises:
          NonFiniteError: the loss of a step is not finite; the rows before it have been yielded.
          StaleCacheError: a cached teacher saw other inputs than the student of a step.
        """
        while len(self._in_flight) > in_flight:
            first, packed, count = self._in_flight.popleft()
            values = np.asarray(packed.array).astype(np.float64).reshape(-1, 2, len(packed.names))[-count:]
            if self._clock is not None:
                self._clock.reach(first + count)
            self._align(packed)
            bad = None if np.isfinite(values[:, 0]).all() else _first_nonfinite(values[:, 0], packed.names)
            for offset, value in enumerate(values):
                step = first + offset + 1
                refuse_unseen(dict(zip(packed.names, value[0], strict=True)), f"update {step}")
                if bad is not None and offset == bad[0]:
                    raise _nonfinite_error(step, bad[1])
                self._sums += value
                if step % self._cadence.log_every == 0 or step == self._cadence.steps:
                    yield self._row(step)

    @property
    def partial_row(self) -> dict[str, list[float]]:
        """Sums and counts of the row that is not complete, in a form that JSON can hold."""
        return {name: sums.ravel().tolist() for name, sums in self._by_name().items() if sums.any()}

    def _by_name(self) -> dict[str, np.ndarray]:
        names = np.array(self._layout.names, object)
        return {name: self._sums[:, names == name] for name in self._layout}

    def _align(self, packed: Packed) -> None:
        """Orders the sums like these metrics, since dispatches may report different ones."""
        if packed.names != self._layout.names:
            known, columns = self._by_name(), collections.Counter(packed.names)
            self._sums = np.concatenate([known.get(n, np.zeros((2, k))) for n, k in columns.items()], axis=1)
        self._layout = packed

    def _row(self, step: int) -> dict[str, float]:
        row: dict[str, float] = {"step": step, "epoch": step / self._steps_per_epoch}
        means = compute(dataclasses.replace(self._layout, array=self._sums))
        means = {name: mean for name, mean in means.items() if not is_unseen_metric(name)}  # 0, or the run has ended
        self._sums = np.zeros_like(self._sums)
        speed = {} if self._clock is None else {SPEED: self._clock.row_speed()}
        if speed and "tokens_per_example" in means:  # of `jaxkd.metrics.tokens`
            speed[TOKEN_SPEED] = float(f"{means['tokens_per_example'] * speed[SPEED]:.4g}")
        return row | {f"train/{name}": mean for name, mean in means.items()} | speed


def refuse_unseen(sums: Mapping[str, float], what: str) -> None:
    """Raises if a cached teacher saw other inputs than the student.

    Args:
      sums: sums of metrics by name.
      what: update or evaluation, for the message.

    Raises:
      StaleCacheError: names the number of examples and the cure.
    """
    unseen = sum(value for name, value in sums.items() if is_unseen_metric(name))
    if unseen > 0:
        raise StaleCacheError(
            f"{what}: {unseen:.0f} examples are not what the cached teacher saw: their checksums are not those of its "
            "inputs when the cache was written. The step's augmentation, seed, normalization or image size is another "
            "one, or its batches are changed in another way. Pass the cache's transform, "
            "distillers.preprocess(kd, train_transform=cache.transform), and no other one in the step; or write "
            "another cache. teachers.cached(cache, tolerance=None) trains a student on other views than its teacher's."
        )


class Logs:
    """Writer of the three files. When `write` returns, the whole row is on disk.

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
      rows: rows that the files hold.
    """

    def __init__(
        self, directory: str | os.PathLike[str], rows: Iterable[Row] = (), *, tensorboard: bool | None = None
    ) -> None:
        """Opens the files and makes them hold exactly the given rows.

        Args:
          directory: folder of the files, created if missing.
          rows: rows of the last checkpoint; later or incomplete lines of an earlier process are removed.
          tensorboard: None writes for TensorBoard if tensorboardX is installed, and logs a note once if it is not.

        Raises:
          ImportError: ``tensorboard=True`` and tensorboardX is not installed.
        """
        self._directory = pathlib.Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._use_tensorboard = _has_tensorboard(tensorboard)
        if self._use_tensorboard:
            check_inside(self._directory, "tensorboard")
        for name in (*_TABLES, "config.json", "program.txt.gz", _OWN_EVENTS):
            # Temporary files of a process that was killed while writing, which nothing will rename.
            for orphan in self._directory.glob(f"{name}.unfinished-*"):
                orphan.unlink(missing_ok=True)
        self.rows: list[Row] = []
        self._columns: list[str] = []
        self._csv: IO[str] | None = None
        self._jsonl: IO[str] | None = None
        self._events: Any = None
        self._open(list(rows))

    def write(self, row: Row) -> None:
        """Appends a row.

        A name that no earlier row has adds a column; the CSV is then rewritten, with empty cells in earlier rows.

        Args:
          row: floats by name, with ``step``, which never decreases.

        Raises:
          ValueError: the row has no step, or its step is before that of the last row.
          OSError: the row could not be written, for instance because the disk is full. Earlier rows are on disk; an
            incomplete row is removed when the files are opened again.
        """
        if "step" not in row:
            raise ValueError(f"row: expected an entry 'step', got {sorted(row)}.")
        if self.rows and row["step"] < self.rows[-1]["step"]:
            raise ValueError(
                f"step: expected at least {self.rows[-1]['step']}, the step of the last row, got {row['step']}. Call "
                "truncate(step) to go back."
            )
        self.rows.append(row)
        try:
            self._append(row)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror or error}: the row of step {row['step']:g} could not be written. Earlier rows and "
                "checkpoints are intact; once there is room, the same command resumes from the last checkpoint",
                str(self._directory),
            ) from error

    def truncate(self, step: float) -> None:
        """Removes every row after a step from all files."""
        rows = [row for row in self.rows if row["step"] <= step]
        self.close()
        self._open(rows)

    def close(self) -> None:
        """Closes the files."""
        for file in (self._csv, self._jsonl, self._events):
            if file is not None:
                with contextlib.suppress(OSError):  # a failed write has been reported; close would try it again
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
            if self._events is None:  # not in `_open`: reopening a finished run must not add a file
                self._events = _open_events(self._directory / "tensorboard", int(row["step"]))
            _write_events(self._events, row)

    def _open(self, rows: list[Row]) -> None:
        self.rows = rows
        # Columns in order of first appearance, so that a resumed run has those of an uninterrupted one.
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        self._rewrite_csv()
        path = self._directory / "metrics.jsonl"
        write_atomically(path, "".join(map(_json_line, rows)))
        self._jsonl = path.open("a", encoding="utf-8")
        if self._use_tensorboard:
            _truncate_events(self._directory, int(rows[-1]["step"]) if rows else -1)

    def _rewrite_csv(self) -> None:
        if self._csv is not None:
            self._csv.close()
        path = self._directory / "metrics.csv"
        header = _csv_text(self._columns, [dict(zip(self._columns, self._columns, strict=True))]) if self.rows else ""
        write_atomically(path, header + _csv_text(self._columns, self.rows))
        self._csv = path.open("a", encoding="utf-8", newline="")


def _put(file: IO[str] | None, text: str) -> None:
    if file is None:
        raise ValueError("these logs are closed; open new ones with Logs(directory, rows).")
    file.write(text)
    file.flush()


def _csv_text(columns: list[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, restval="", lineterminator="\n").writerows(rows)
    return text.getvalue()


def _json_line(row: Row) -> str:
    # NaN and Infinity are not valid JSON; other readers would stop at them.
    finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


@functools.cache
def _warn_without_tensorboard() -> None:
    _log.warning(
        "No TensorBoard files are written: tensorboardX is not installed (pip install tensorboardX). "
        "metrics.csv and metrics.jsonl hold the same numbers; tensorboard=False suppresses this note."
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
        _warn_without_tensorboard()
        return False
    return True


def _truncate_events(directory: pathlib.Path, last: int) -> None:
    """Removes every event after the step ``last`` from the files that `Logs` wrote."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(directory.glob(_OWN_EVENTS)):
        kept = b""
        for record in event_records(path.read_bytes()):
            event = Event.FromString(record[12:-4])
            if not event.HasField("summary") or event.step <= last:
                kept += record
        write_atomically(path, kept)


def _open_events(directory: pathlib.Path, first: int) -> Any:
    """Opens a new event file for the events from the step ``first``."""
    # SummaryWriter passes events to a thread through a queue that its flush does not wait for, so that events of a
    # killed process could be missing. The file writer that it is built on writes at once.
    from tensorboardX.event_file_writer import EventsWriter

    directory.mkdir(exist_ok=True)
    # The file name holds the time in seconds; the suffix keeps two processes of one second apart.
    return EventsWriter(str(directory / "events"), f".jaxkd.step{first}.{os.getpid()}.{time.monotonic_ns()}")


def event_records(content: bytes) -> Iterator[bytes]:
    """Yields the records of an event file: length, its checksum, data, its checksum.

    An incomplete last record, which a killed process may leave, is left out.
    """
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
    with contextlib.suppress(ValueError):  # protobuf may refuse NaN, which a plot could not show
        events.write_event(Event(wall_time=time.time(), step=int(row["step"]), summary=Summary(value=values)))
        events.flush()


def _is_loss(name: str) -> bool:
    """Returns True for the total loss, such as ``loss``, or ``loss[0]`` of a sweep."""
    return name.partition("[")[0] == "loss"


def _first_nonfinite(sums: np.ndarray, names: tuple[str, ...]) -> tuple[int, dict[str, float]] | None:
    """Returns the first step whose loss is not finite, and its bad metrics.

    Without a loss among the metrics, any metric that is not finite ends the run.
    """
    finite = np.isfinite(sums)
    losses = [i for i, name in enumerate(names) if _is_loss(name)] or list(range(len(names)))
    steps = np.flatnonzero(~finite[:, losses].all(axis=1))
    if not steps.size:
        return None
    step = int(steps[0])
    bad = {name: float(sums[step, i]) for i, name in enumerate(names) if not finite[step, i]}
    return step, dict(sorted(bad.items(), key=lambda item: _is_loss(item[0])))


def _nonfinite_error(step: int, values: Mapping[str, float]) -> NonFiniteError:
    listed = ", ".join(f"{name!r} is {value}" for name, value in values.items())
    return NonFiniteError(f"the loss is not finite in update {step}: {listed}.", step, tuple(values))
