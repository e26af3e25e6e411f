"""Log files: equal rows in all of them, resuming, non-finite numbers, full disks."""

import builtins
import csv
import errno
import json
import math
import os

import pytest

from jaxkd._core import files
from jaxkd.training import Logs, _logs


def rows_of(directory):
    with (directory / "metrics.csv").open() as file:
        table = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return table, lines


def events_of(directory):
    """Tag, step and value of every event, read from the records of the files."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted((directory / "tensorboard").glob("events.*")):
        for record in _logs.event_records(path.read_bytes()):
            event = Event.FromString(record[12:-4])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
    return sorted(found)


ROWS = [
    {"step": 5, "train/loss": 0.1},
    {"step": 10, "train/loss": 1 / 3, "eval/accuracy": 0.5},
    {"step": 15, "train/loss": 1e-9},
]


def test_all_files_hold_a_row_as_soon_as_it_is_written(tmp_path):
    with Logs(tmp_path) as written:
        for row in ROWS:
            written.write(row)
        assert rows_of(tmp_path) == (ROWS, ROWS)
        assert [(tag, step) for tag, step, _ in events_of(tmp_path)] == [
            ("eval/accuracy", 10),
            ("train/loss", 5),
            ("train/loss", 10),
            ("train/loss", 15),
        ]


def test_new_column_rewrites_the_header(tmp_path):
    with Logs(tmp_path, tensorboard=False) as written:
        for row in ROWS:
            written.write(row)
    text = (tmp_path / "metrics.csv").read_text().splitlines()
    assert text[0] == "step,train/loss,eval/accuracy"
    assert text[1] == "5,0.1,"
    assert {path.name for path in tmp_path.iterdir()} == {"metrics.csv", "metrics.jsonl"}


def test_resumed_files_equal_uninterrupted_ones(tmp_path):
    def write(directory, rows):
        with Logs(directory) as written:
            for row in rows:
                written.write(row)

    write(tmp_path / "straight", ROWS)
    write(tmp_path / "broken", [ROWS[0], {"step": 10, "other": 2.0}, {"step": 12, "train/loss": 7.0}])
    # A process that is killed while writing leaves an incomplete line and an incomplete event.
    with (tmp_path / "broken/metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "tra')
    for path in (tmp_path / "broken/tensorboard").glob("events.*"):
        path.write_bytes(path.read_bytes()[:-3])
    with Logs(tmp_path / "broken", ROWS[:1]) as resumed:
        for row in ROWS[1:]:
            resumed.write(row)
    for name in ("metrics.csv", "metrics.jsonl"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert events_of(tmp_path / "broken") == events_of(tmp_path / "straight")


def test_truncate_removes_columns_of_later_rows(tmp_path):
    with Logs(tmp_path) as written:
        for row in ROWS:
            written.write(row)
        written.truncate(9)
        assert (tmp_path / "metrics.csv").read_text() == "step,train/loss\n5,0.1\n"
        assert events_of(tmp_path) == [("train/loss", 5, pytest.approx(0.1))]


def test_nan_and_infinity_are_valid_json_and_csv(tmp_path):
    with Logs(tmp_path) as written:
        written.write({"step": 1, "a": math.nan, "b": math.inf})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "a": None, "b": None}
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1] == "1,nan,inf"


def test_rows_without_a_step_or_out_of_order_are_refused(tmp_path):
    with Logs(tmp_path, tensorboard=False) as written:
        with pytest.raises(ValueError, match="row: expected an entry 'step'"):
            written.write({"loss": 1.0})
        written.write({"step": 2})
        with pytest.raises(ValueError, match=r"step: expected at least 2, .* got 1.*truncate"):
            written.write({"step": 1})


@pytest.fixture
def without_tensorboard(monkeypatch):
    original = builtins.__import__

    def fail(name, *args, **kwargs):
        if name.startswith("tensorboardX"):
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fail)
    _logs._warn_without_tensorboard.cache_clear()


def test_without_tensorboardx_other_files_are_written_with_one_note(tmp_path, without_tensorboard, caplog):
    for name in ("a", "b"):
        with Logs(tmp_path / name) as written:
            written.write(ROWS[0])
        assert rows_of(tmp_path / name) == (ROWS[:1], ROWS[:1])
        assert not (tmp_path / name / "tensorboard").exists()
    assert [record.message for record in caplog.records] == [
        "No TensorBoard files are written: tensorboardX is not installed (pip install tensorboardX). metrics.csv and "
        "metrics.jsonl hold the same numbers; tensorboard=False suppresses this note."
    ]


def test_tensorboard_without_tensorboardx_is_an_error(tmp_path, without_tensorboard):
    with pytest.raises(ImportError, match="pip install tensorboardX"):
        Logs(tmp_path, tensorboard=True)


def test_failed_atomic_write_leaves_only_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    files.write_atomically(path, "old")

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr(_logs.os, "fsync", full)
    with pytest.raises(OSError, match=r"disk full: it could not be replaced; its old content is intact: '.*x\.txt'"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


class Full:
    """A file on a disk that has room for a few more bytes."""

    def __init__(self, path, room):
        self.file, self.room, self.waiting = path.open("a"), room, ""

    def write(self, text):
        self.waiting += text

    def flush(self):
        written, self.waiting = self.waiting[: self.room], self.waiting[self.room :]
        self.file.write(written)
        self.file.flush()
        self.room -= len(written)
        if self.waiting:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def close(self):
        try:
            self.flush()
        finally:
            self.file.close()


@pytest.mark.parametrize(("name", "attribute"), [("metrics.csv", "_csv"), ("metrics.jsonl", "_jsonl")])
def test_disk_that_fills_up_within_a_row_loses_only_that_row(name, attribute, tmp_path):
    message = rf"No space left on device: the row of step 15 could not be written.*'{tmp_path}'"
    with Logs(tmp_path, tensorboard=False) as written:
        for row in ROWS[:2]:
            written.write(row)
        whole = (tmp_path / name).read_bytes()
        getattr(written, attribute).close()
        setattr(written, attribute, Full(tmp_path / name, room=5))
        with pytest.raises(OSError, match=message):
            written.write(ROWS[2])
    assert len((tmp_path / name).read_bytes()) == len(whole) + 5
    with Logs(tmp_path, ROWS[:2], tensorboard=False) as resumed:
        assert (tmp_path / name).read_bytes() == whole
        resumed.write(ROWS[2])
    assert rows_of(tmp_path) == (ROWS, ROWS)


def test_temporary_files_of_a_killed_process_are_removed(tmp_path):
    for name in ("metrics.csv", "metrics.jsonl", "config.json", "program.txt.gz", "other"):
        (tmp_path / f"{name}.unfinished-12").write_text("half")
    with Logs(tmp_path, tensorboard=False):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"other.unfinished-12", "metrics.csv", "metrics.jsonl"}
