"""The queue of the reduced protocol: committed cells are finished, the others run, finished ones are kept."""

import json

import pytest

from experiments import cells as queue
from experiments.cifar100 import config, problem
from experiments.kit import cell as cells
from experiments.kit import command
from experiments.kit.recipe import Protocol
from experiments.kit.teachers import Place
from tests.experiments import cifar100_tiny as tiny

PROTOCOL = config.PRESETS["reduced"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(queue, "RESULTS", tmp_path / "results")
    return Place(problem.PROBLEM, PROTOCOL, None, tmp_path / "runs", {"resnet20": str(queue.TEACHER)})


def finish(directory, protocol=PROTOCOL):
    directory.mkdir(parents=True)
    (directory / "cell.json").write_text(json.dumps({"protocol": protocol.settings()}))
    (directory / "metrics.csv").write_text("step\n1\n")
    (directory / "student.safetensors").write_text("weights")


def test_committed_cells_are_finished_and_finished_cells_are_kept(place, tmp_path):
    first, second = cells.wanted([queue.PAIR], ["kd"], [0, 1], place.problem)
    finish(tmp_path / "results" / "12-epochs" / first.path)
    assert queue.restore([first, second], place) == [first] and place.file(first).exists()
    assert queue.restore([first, second], place) == []
    finish(place.directory(second))
    (place.folder / "log.txt").write_text("a line")
    assert queue.keep([first, second], place) == [first, second]
    kept = tmp_path / "results" / "12-epochs"
    assert sorted(path.name for path in (kept / second.path).iterdir()) == ["cell.json", "metrics.csv"]
    assert (kept / "log.txt").read_text() == "a line"


def test_a_committed_cell_of_another_protocol_is_refused(place, tmp_path):
    (cell,) = cells.wanted([queue.PAIR], ["kd"], [0], place.problem)
    finish(tmp_path / "results" / "12-epochs" / cell.path, config.PRESETS["paper"])
    with pytest.raises(ValueError, match="expected a cell of"):
        queue.restore([cell], place)


def test_the_queue_runs_the_benchmark_with_the_committed_teacher(place, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(queue.cifar100, "cli", lambda arguments: asked.append(arguments) or 0)
    arguments = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "runs"), "--workers", "2"]
    assert command.run("cells", queue.Queue, queue.main, arguments) == 0
    (given,) = asked
    assert given[: given.index("--preset")] == ["--pair", queue.PAIR, "--method", *queue.METHODS]
    assert given[given.index("--workers") + 1] == "2" and f"resnet20={queue.TEACHER}" in given
    assert queue.TEACHER.exists()


@pytest.mark.slow
def test_the_queue_resumes_after_committed_cells_and_does_nothing_twice(tmp_path, monkeypatch):
    """Tiny cells: the student alone is run and kept; elsewhere, only KD is left; after it, nothing."""
    ran, run = [], cells.run
    monkeypatch.setattr(cells, "run", lambda together, *more: ran.append(together[0].method) or run(together, *more))
    monkeypatch.setattr(command, "remember_programs", lambda path: None)
    monkeypatch.setattr(queue, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(queue, "TEACHER", tiny.save(tmp_path, "resnet20"))
    monkeypatch.setattr(problem, "PROBLEM", tiny.PROBLEM)
    reduced = Protocol(epochs=1, teacher_epochs=1, batch_size=8, cached=True)
    monkeypatch.setitem(config.PRESETS, "reduced", reduced)

    def make(out, *more):
        arguments = ["--data-dir", str(tmp_path), "--out", str(tmp_path / out), "--seeds", "1", *more]
        assert command.run("cells", queue.Queue, queue.main, arguments) == 0

    def content(folder):
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}

    make("first", "--method", "student")
    make("first", "--method", "student", "--keep")
    assert ran == ["student"]
    make("second", "--method", "kd")
    assert ran == ["student", "kd"]
    before = content(tmp_path / "second")
    make("second", "--method", "kd")
    assert ran == ["student", "kd"] and content(tmp_path / "second") == before
    make("second", "--method", "kd", "--keep")
    kept = content(tmp_path / "results")
    assert len([path for path in kept if path.name == "cell.json"]) == 2
    make("second", "--method", "kd", "--keep")
    assert content(tmp_path / "results") == kept
