"""The command of the CIFAR-100 benchmark: what it would do, what it refuses, and one run of it to its report."""

import json
import os
import subprocess

import pytest
from rich.filesize import decimal

from experiments.cifar100 import config, main, problem, published, report
from experiments.kit import cell as cells
from experiments.kit import command, methods, plan, teachers
from experiments.kit import report as kit_report
from experiments.kit.recipe import Protocol
from experiments.kit.teachers import Place
from jaxkd.training import Preempted
from tests.experiments import cifar100_tiny as tiny


@pytest.fixture(autouse=True)
def _no_compilation_cache(monkeypatch):
    monkeypatch.setattr(command, "remember_programs", lambda path: None)


@pytest.mark.slow
def test_a_dry_run_tells_the_work_and_writes_nothing(tmp_path, monkeypatch, capsys):
    plans, lines = [], plan.lines
    monkeypatch.setenv("COLUMNS", "140")  # a narrow terminal breaks the lines of the table
    monkeypatch.setattr(plan, "_timed", lambda kd, batch: 0.5)
    monkeypatch.setattr(plan, "lines", lambda *arguments: plans.append(lines(*arguments)) or plans[-1])
    unread = problem.PROBLEM._replace(load=lambda *_: pytest.fail("it reads no data"))
    monkeypatch.setattr(problem, "PROBLEM", unread)
    out = tmp_path / "out"
    arguments = ["--pair", tiny.PAIR, "--preset", "reduced", "--images", "5000", "--seeds", "2", "--workers", "2"]
    finished = out / "12-epochs-5000-images-cached" / "resnet14-resnet8" / "student" / "seed1" / "cell.json"
    finished.parent.mkdir(parents=True)
    finished.write_text("{}")
    before = sorted(out.rglob("*"))
    assert main.cli([*arguments, "--method", "crd", "fsp", "--out", str(out), "--dry-run"]) == 0
    assert sorted(out.rglob("*")) == before
    (teacher, outputs, student, fsp, crd) = plans[0]
    assert [line.what for line in plans[0]] == [
        "teacher resnet14",
        "outputs of resnet14 for 1 methods, 12 views",
        "resnet14 → resnet8: student alone",
        "resnet14 → resnet8: FSP",
        "resnet14 → resnet8: CRD",
    ]
    assert [(line.runs, line.done, line.left) for line in plans[0]] == [
        (1, 0, 1), (1, 0, 1), (2, 1, 1), (2, 0, 2), (2, 0, 2)
    ]  # fmt: skip
    steps = 12 * 79  # batches of 64, the last of 5000 images not full
    assert [line.steps for line in plans[0]] == [12 * 782, 12 * 5000 // 64, steps, steps + 118, steps]
    assert teacher.seconds == pytest.approx(teacher.steps * 0.5) and student.seconds == pytest.approx(
        steps * 0.5, rel=1e-4
    )
    assert fsp.seconds == pytest.approx(fsp.steps * fsp.flops / student.flops * 0.5, rel=1e-4)
    assert student.flops < crd.flops < fsp.flops and 2 * student.flops > crd.flops  # CRD's teacher is not evaluated
    forward = teacher.flops / 3
    assert outputs.seconds == pytest.approx(5000 * 12 / 64 * forward / teacher.flops * 0.5)
    assert outputs.bytes == 5000 * 12 * (100 + 64) * 2 and student.bytes > 4 * 83_892 > student.bytes / 2
    # A checkpoint holds momenta as well, and CRD's two banks.
    assert student.working > 2 * 2 * student.bytes * 0.9 and crd.working - student.working > 2 * 2 * 5000 * 128 * 4
    shown = capsys.readouterr().out
    assert all(line.what in shown for line in plans[0])
    left = sum(line.left * line.seconds for line in plans[0])
    assert kit_report.duration(left / 2) in shown and decimal(outputs.bytes) in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pair", "resnet20"], "--pair: expected TEACHER:STUDENT of resnet8, resnet14"),
        (["--pair", "resnet20:resnet9"], "got 'resnet20:resnet9'"),
        (["--method", "kd", "kdd"], "--method: expected some of student, kd, fitnet"),
        (["--images", "150"], "--images: expected a multiple of 100"),
        (["--seeds", "0"], "--seeds: expected at least 1"),
        ([], "--data-dir: name the TFDS data_dir in which cifar100 is prepared"),
        (["--teacher-weights", "resnet20"], "--teacher-weights: expected NAME=FILE with a file that exists"),
        (["--teacher-weights", "resnet20=nowhere.safetensors"], "got 'resnet20=nowhere.safetensors'"),
        (["--teacher-weights", f"resnet8={__file__}"], "for some of the teachers resnet20, got 'resnet8="),
    ],
)
def test_commands_that_cannot_be_run_are_refused(arguments, message, tmp_path, capsys):
    assert main.cli([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_data_dir_without_the_set_is_refused(tmp_path, capsys):
    assert main.cli(["--data-dir", str(tmp_path), "--out", str(tmp_path / "out"), "--preset", "reduced"]) == 2
    assert "cifar100" in capsys.readouterr().err.removeprefix("cifar100: ")


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (Preempted(5), 75)])
def test_an_interrupted_command_says_how_to_go_on(error, status, monkeypatch, capsys):
    def stop(*_):
        raise error

    monkeypatch.setattr(main, "main", stop)
    assert main.cli([]) == status
    assert "run the same command again to resume" in capsys.readouterr().err


def test_what_a_command_chooses():
    chosen = config.Config(method=("crd", "kd"), pair=("vgg13:vgg8", "resnet20:resnet8", "vgg13:vgg8"))
    assert config.chosen_methods(chosen) == ["student", "kd", "crd"]
    assert config.chosen_pairs(chosen) == ["vgg13:vgg8", "resnet20:resnet8"]
    everything = config.Config(method=("kd", "all"), pair=("all",))
    assert config.chosen_methods(everything) == list(methods.METHODS)
    assert config.chosen_pairs(everything) == list(published.PAIRS)
    assert config.chosen_methods(config.Config()) == ["student", "kd"]


class Worker:
    """In the place of a process."""

    started: list["Worker"] = []

    def __init__(self, command, env):
        self.command, self.env, self.stopped = command, env, False
        self.started.append(self)

    def wait(self):
        if not self.stopped and self.env.get("ENDS") == "interrupted":
            raise KeyboardInterrupt
        return int(self.env.get("ENDS", "0")) if not self.stopped else -15

    def terminate(self):
        self.stopped = True


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setattr(Worker, "started", [])
    monkeypatch.setattr(subprocess, "Popen", Worker)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 3, 5, 7, 9}, raising=False)
    return Worker.started


def test_workers_share_the_cores(workers):
    command.spawn("cifar100", ["--method", "all"], 2)
    assert [worker.env[command.WORKER] for worker in workers] == ["1,5,9", "3,7"]
    assert all(worker.command[-4:] == ["-m", "experiments.cifar100", "--method", "all"] for worker in workers)
    with pytest.raises(ValueError, match="--workers: 6 are more than the 5 cores there are"):
        command.spawn("cifar100", [], 6)


def test_workers_that_fail_or_are_interrupted(workers, monkeypatch):
    monkeypatch.setenv("ENDS", "1")
    with pytest.raises(ValueError, match=r"--workers: processes ended with \[1, 1\]"):
        command.spawn("cifar100", [], 2)
    workers.clear()
    monkeypatch.setenv("ENDS", "interrupted")
    with pytest.raises(KeyboardInterrupt):
        command.spawn("cifar100", [], 2)
    assert len(workers) == 2 and all(worker.stopped for worker in workers)


def test_given_teachers_and_precision_have_folders_of_their_own(tmp_path):
    files = [tmp_path / name for name in ("a.safetensors", "b.safetensors")]
    for file in files:
        file.write_text(file.name)
    protocols = config.PRESETS["paper"], Protocol(240, 240, bf16=True)
    given = [{}, *({"resnet20": str(file)} for file in files)]
    places = [Place(problem.PROBLEM, protocol, None, tmp_path, one) for protocol in protocols for one in given]
    assert len({place.folder for place in places}) == len({place.teacher_file("resnet20") for place in places}) == 6
    students = {place.teacher_file("resnet8") for place in places}  # the file is of another network
    assert len(students) == 2


@pytest.mark.slow
def test_a_command_to_its_report_and_once_more(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(problem, "PROBLEM", tiny.PROBLEM)
    monkeypatch.setattr(teachers, "_train", lambda *_: pytest.fail("its weights are given"))
    out = tmp_path / "out"
    arguments = ["--data-dir", str(tmp_path), "--out", str(out), "--pair", tiny.PAIR, "--method", "kd"]
    arguments += ["--preset", "reduced", "--epochs", "1", "--seeds", "1", "--first-seed", "3"]
    arguments += ["--teacher-weights", f"{tiny.TEACHER}={tiny.save(tmp_path)}"]
    assert main.cli(arguments) == 0
    printed = capsys.readouterr().out
    assert "[2/2] resnet14:resnet8 kd seed 3: test accuracy" in printed and "KD" in printed
    (folder,) = out.glob("1-epochs-cached-given-resnet14-*")
    picture = folder / report.picture(tiny.PAIR, "gains")
    assert printed.endswith(f"\nreport   {folder}/report.md\npicture  {picture}\n")
    assert "nothing was trained" not in printed
    results = json.loads((folder / "results.json").read_text())["pairs"][tiny.PAIR]
    assert list(results["methods"]) == ["student", "kd"] and results["methods"]["kd"]["seeds"] == [3]
    assert results["teacher"]["last"] == pytest.approx(
        json.loads(next(out.glob("teachers/given-*/resnet14/teacher.json")).read_text())["test"]["accuracy"]
    )
    page = (folder / "report.md").read_text()
    told = "python -m experiments.cifar100 --data-dir DIR --pair resnet14:resnet8 --method at --preset reduced"
    assert told in page and "--epochs 1" in page and "--first-seed 3" in page
    for kind in report.PICTURES:
        picture = report.picture(tiny.PAIR, kind)
        assert (folder / picture).read_bytes().startswith(b"\x89PNG") and str(picture) in page
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("cell.json")}
    assert len(kept) == 2
    monkeypatch.setattr(cells, "run", lambda *_: pytest.fail("it is finished"))
    monkeypatch.setattr(Place, "teacher", lambda *_: pytest.fail("nobody needs it"))
    monkeypatch.setenv(command.WORKER, "")  # a worker leaves the report to the process that started it
    assert main.cli(arguments) == 0 and "report.md" not in capsys.readouterr().out
    monkeypatch.delenv(command.WORKER)
    assert main.cli(arguments) == 0
    assert f"\nnothing was trained: all results were there\nreport   {folder}" in capsys.readouterr().out
    assert page == (folder / "report.md").read_text()
    assert kept == {path: path.stat().st_mtime_ns for path in folder.rglob("cell.json")}


# What is published.


def test_published_values():
    # The corners of both tables, and what is missing in between.
    assert published.value("wrn_40_2:wrn_16_2", "teacher") == 75.61
    assert published.value("vgg13:vgg8", "logit_std") == 74.36
    assert published.value("wrn_40_2:wrn_40_1", "dist") == 74.43
    assert published.value("vgg13:mobilenet_v2", "student") == 64.60
    assert published.value("wrn_40_2:shufflenet_v1", "dkd") == 76.70
    assert published.value("wrn_40_2:wrn_40_1", "fsp") is None
    assert published.value("resnet50:vgg8", "dkd") is None
    assert published.value("resnet20:resnet8", "kd") is None
    assert published.value("resnet56:resnet20", "crd_kd") is None
    for pair in published.PAIRS:
        assert all(published.value(pair, name) is not None for name in ("teacher", "student", "kd", "crd"))
        assert published.gain(pair, "kd") > 0
    assert published.gain("vgg13:mobilenet_v2", "at") == pytest.approx(-5.2)
    assert published.rerun("resnet32x4:resnet8x4", "student") == (72.49, 0.27)
    assert published.rerun("resnet56:resnet20", "student") is None


def test_the_classes_have_names():
    assert len(set(problem.CLASS_NAMES)) == 100 and list(problem.CLASS_NAMES) == sorted(problem.CLASS_NAMES)
