"""The command for an accelerator: time boxes, peaks, records, the report, and a rehearsal of every part."""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator import parts, peaks, record, report, seeds, timing, vocabulary
from benchmarks.accelerator.options import Options
from benchmarks.accelerator.record import Case, Record

MACHINE = {
    **{"platform": "gpu", "device_kind": "NVIDIA H100 80GB HBM3", "devices": 1, "device_bytes": 80_000_000_000},
    **{"runtime": ["CUDA"], "cores": 8, "system": "Linux", "versions": {"jax": "0.11.2"}, "xla_flags": ""},
    "source": "0123456789abcdef",
}


class Clock:
    """A clock that moves when it is told to, and by a step whenever it is read."""

    def __init__(self, step=0.0):
        self.now, self.step = 100.0, step

    def __call__(self):
        self.now += self.step
        return self.now


def test_a_part_of_a_box_ends_no_later_than_the_box():
    clock = Clock()
    box = timing.Box(110.0, clock)
    assert box.left == 10 and box.fits(10) and not box.fits(10.1)
    assert box.part(3).until == 103 and box.part(30).until == 110
    clock.now = 120.0
    assert box.left == 0 and not box.fits(0.1)


def test_rounds_end_with_the_box_but_one_is_always_measured():
    clock = Clock()

    def call():
        clock.now += 2.0

    over = timing.seconds_of(call, timing.Box(0.0, clock), rounds=5, clock=clock)
    assert over.median == 2.0 and over.calls == 1
    short = timing.seconds_of(call, timing.Box(clock.now + 11.0, clock), rounds=5, clock=clock)
    assert short.calls == 3  # two calls before the rounds, and each further round needs 1.5 of the last one's time
    whole = timing.seconds_of(call, timing.Box(clock.now + 1e3, clock), rounds=5, clock=clock)
    assert whole.calls == 5 and whole.row(4)["seconds"] == 0.5


def test_short_calls_are_repeated_within_a_round():
    clock = Clock()

    def call():
        clock.now += 0.1

    found = timing.seconds_of(call, timing.Box(1e9, clock), rounds=2, least=0.5, clock=clock)
    assert found.calls == 10 and found.median == pytest.approx(0.1)


def test_budgets_leave_time_to_end_and_the_last_part_takes_what_is_left():
    whole = 60 * parts.MINUTES
    budgets = [seconds for seconds in parts.BUDGETS.values() if seconds < whole]
    assert len(budgets) == len(parts.BUDGETS) - 1 and sum(budgets) < whole - 60
    assert parts.seconds_for("seeds", 200.0) == 200 - parts.GRACE - parts.END
    assert parts.seconds_for("images", parts.GRACE + parts.END + parts.LEAST - 1) == 0
    assert parts.seconds_for("dispatch", 1e4, 2 * parts.MINUTES) == 2 * parts.BUDGETS["dispatch"]


@pytest.mark.parametrize(
    ("kind", "bf16"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("Tesla V100-SXM2-16GB", 125e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v4", 275e12),
        ("cpu", None),
        ("NVIDIA H1000", None),
    ],
)
def test_peaks_of_device_kinds(kind, bf16):
    assert peaks.peak(kind, "bfloat16") == bf16


def test_fraction_of_peak():
    assert peaks.fraction(98.9e12, 0.2, "NVIDIA H200", "bfloat16") == pytest.approx(0.5)
    assert peaks.fraction(98.9e12, 0.2, "cpu", "bfloat16") is None
    assert peaks.fraction(None, 0.2, "NVIDIA H200", "float32") is None


def written(path):
    return json.loads(path.read_text())


def test_every_case_is_on_disk_before_the_next_one_and_a_killed_one_is_not_reached(tmp_path):
    path, seen = tmp_path / "part.json", []

    def killed(box):
        seen.append(written(path)["rows"])
        raise KeyboardInterrupt

    cases = [Case("first", 1, lambda box: {"seconds": 1.0}), Case("second", 1, killed), Case("third", 1, dict)]
    found = Record(path, "part", MACHINE, {})
    with pytest.raises(KeyboardInterrupt):
        found.run(cases, timing.Box(200.0, Clock()), lambda text: None)
    assert [row["case"] for row in seen[0]] == ["first"]
    assert written(path)["not_reached"] == ["second", "third"] and written(path)["planned"][0] == "first"
    assert written(path)["running"] == "second"


def test_an_interrupted_case_comes_last_unless_it_resumes(tmp_path):
    def killed(box):
        raise KeyboardInterrupt

    for resumes, order in ((False, ["b", "a"]), (True, ["a", "b"])):
        path = tmp_path / f"{resumes}.json"
        with pytest.raises(KeyboardInterrupt):
            Record(path, "part", MACHINE, {}).run([Case("a", 1, killed, resumes)], timing.Box(200.0, Clock()))
        cases = [Case(name, 1, lambda box: {"seconds": 1.0}, resumes) for name in ("a", "b")]
        Record(path, "part", MACHINE, {}).run(cases, timing.Box(200.0, Clock()), lambda text: None)
        assert [row["case"] for row in written(path)["rows"]] == order


def test_a_case_that_does_not_fit_is_not_reached_and_a_shorter_one_is(tmp_path):
    said = []
    cases = [Case("long", 50, dict), Case("short", 5, lambda box: {"seconds": 1.0})]
    found = Record(tmp_path / "part.json", "part", MACHINE, {})
    found.run(cases, timing.Box(110.0, Clock()), said.append)
    assert written(found.path)["not_reached"] == ["long"] and found.done == {"short"}
    assert said[0] == "long: not reached, 10 s left of at least 50 s"


def test_the_next_call_resumes_results_of_the_same_machine_and_source_alone(tmp_path):
    def failing(box):
        raise ValueError("a mistake")

    box, path = timing.Box(1e9, Clock()), tmp_path / "part.json"
    cases = [Case("good", 1, lambda box: {"seconds": 1.0}), Case("bad", 1, failing)]
    Record(path, "part", MACHINE, {}).run(cases, box, lambda text: None)
    assert [row.get("error") for row in written(path)["rows"]] == [None, "ValueError: a mistake"]
    again = Record(path, "part", MACHINE, {})
    assert again.done == {"good"}
    again.run([Case("good", 1, failing), Case("bad", 1, lambda box: {"seconds": 2.0})], box, lambda text: None)
    assert [row["seconds"] for row in written(path)["rows"]] == [1.0, 2.0] and written(path)["not_reached"] == []
    for other in (MACHINE | {"source": "another"}, MACHINE | {"device_kind": "NVIDIA A100-SXM4-40GB"}):
        assert Record(path, "part", other, {}).done == set()
    assert Record(path, "part", MACHINE, {"rehearsal": True}).done == set()


def test_too_little_memory_is_a_result(tmp_path):
    def full(box):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 68.9GiB.\nmore")

    found = Record(tmp_path / "part.json", "part", MACHINE, {})
    found.run([Case("dense", 1, full)], timing.Box(1e9, Clock()), lambda text: None)
    assert "RESOURCE_EXHAUSTED" in found.content["rows"][0]["out_of_memory"] and found.done == {"dense"}


def test_the_source_is_that_of_the_tree():
    assert record.source() == record.source() and len(record.source()) == 16


def content(part, rows, **more):
    started = {"part": part, "machine": MACHINE, "settings": {"rehearsal": False}, "planned": ["a"], "not_reached": []}
    return started | {"rows": rows} | more


def test_report():
    loss = {"passed": True, "value_error": 1e-6, "gradient_error": 2e-6, "repeats_bit_for_bit": False}
    loss |= {"value_error_default": 1e-3, "gradient_error_default": 2e-3}
    results = {
        "checks": content("checks", [{"case": "losses", "losses": {"dist": loss}}]),
        "vocabulary": content(
            "vocabulary",
            [
                {
                    **{"case": "linear_generalized_jsd, default chunk", "seconds": 0.05, "fraction_of_peak": 0.4},
                    **{"temporary_bytes": 3e9, "program_bytes": 8e9, "process_peak_bytes": 9e9},
                },
                {
                    **{"case": "dense generalized_jsd", "temporary_bytes": 9e10, "program_bytes": 9.5e10},
                    "out_of_memory": "the program needs 95,000,000,000 bytes",
                },
            ],
        ),
        "images": content("images", [], not_reached=["a pair, bfloat16, live"]),
        "seeds": content("seeds", [], planned=[]),
    }
    page = report.markdown(results)
    assert "Machine: 1 × NVIDIA H100 80GB HBM3, 80 GB for JAX" in page and page.count("Machine:") == 1
    assert "1 losses in float32 against the float64 references: 1 within" in page and "differ in: dist." in page
    assert "| linear_generalized_jsd, default chunk | 50.0 | 40.0% | 3.00 | 8.00 | 9.00 |" in page
    assert "| dense generalized_jsd | – | – | 90.00 | 95.00 | – |" in page
    assert "- dense generalized_jsd: out of memory (the program needs 95,000,000,000 bytes)" in page
    assert "| published, H100: Liger's kernel, JSD | 60.7 | – | – | – | 11.1 |" in page
    assert "are not measurements of this machine" in page
    assert "- Not reached: a pair, bfloat16, live" in page
    assert "Skipped: no images were given." in page
    assert page.count("Not reached.") == 3  # composed, dispatch, on_policy have no file
    assert "rehearsal" not in page
    rehearsed = content("images", [], settings={"rehearsal": True})
    assert "A rehearsal" in report.markdown({"images": rehearsed})


def test_interrupted_trainings_are_reported():
    found = content("seeds", [], progress={"resnet32x4:resnet8x4 kd seed 0": 57.0})
    assert "seed 0: interrupted after 57 epochs; the next call resumes it" in report.markdown({"seeds": found})


def test_without_images_there_are_no_trainings(tmp_path):
    assert seeds.cases(Options(True, tmp_path)) == [] and seeds.progress(Options(True, tmp_path)) == {}


def test_a_rehearsal_does_not_write_over_measurements(capsys):
    assert command.main(["--rehearse"]) == 2
    assert "name another folder with --out" in capsys.readouterr().err


def test_sizes_are_those_of_the_published_measurement():
    assert [x.shape for x in vocabulary.shapes(vocabulary.Sizes())] == [(8192, 4096), (4096, 128_256)] * 2


# --- the rehearsal ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    random, path = np.random.default_rng(0), tmp_path_factory.mktemp("images") / "tiny.npz"
    both = {"train": 16, "test": 24}
    arrays = {f"{split}_image": random.integers(0, 256, (count, 8, 8, 3), np.uint8) for split, count in both.items()}
    np.savez(path, **arrays, **{f"{split}_label": np.arange(count) % 100 for split, count in both.items()})
    return path


@pytest.mark.slow
@pytest.mark.parametrize("part", list(parts.BUDGETS))
def test_rehearsal_of_a_part(part, images, tmp_path, monkeypatch):
    from experiments.kit import command as kit

    monkeypatch.setattr(kit, "remember_programs", lambda folder: None)  # the tests have a folder of their own
    options = Options(True, tmp_path / "work", images, None, 1)
    options.work.mkdir()
    parts.run(parts.PROBE, options, tmp_path, timing.Box(1e12))
    parts.run(part, options, tmp_path, timing.Box(1e12))
    found = written(tmp_path / f"{part}.json")
    assert found["not_reached"] == [] and [row["case"] for row in found["rows"]] == found["planned"] != []
    assert [row for row in found["rows"] if "error" in row or "out_of_memory" in row] == []
    CONTENT[part](found)
    page = report.write(tmp_path)
    assert "A rehearsal" in page and page == (tmp_path / "report.md").read_text()
    before = (tmp_path / f"{part}.json").read_text()
    parts.run(part, options, tmp_path, timing.Box(1e12))  # nothing is left to be done
    assert (tmp_path / f"{part}.json").read_text() == before


def check_checks(found):
    placed, *groups = found["rows"]
    assert placed["failed"] == "" and {"shard", "fully sharded", "scan", "jit again"} <= set(placed["differences"])
    for row in groups:
        assert row["failed"] == "" and row["passed"] == len(row["losses"]) > 0


def check_composed(found):
    for row in found["rows"]:
        assert row["flops_ratio"] == pytest.approx(1, abs=0.02)
        assert all(row["milliseconds"][side] > 0 for side in ("composed", "handwritten"))


def check_vocabulary(found):
    for row in found["rows"]:
        assert row["seconds"] > 0 and row["temporary_bytes"] > 0 and row["fraction_of_peak"] is None
    assert {"dense soft_target_kl", "dense generalized_jsd"} <= {row["case"] for row in found["rows"]}


def check_images(found):
    assert {(row["dtype"], row["teacher"]) for row in found["rows"]} == {
        (dtype, teacher) for dtype in ("float32", "bfloat16") for teacher in ("live", "cached")
    }
    live, cached, *_ = found["rows"]
    assert live["step_flops"] > cached["step_flops"] > 0 and live["images_per_second"] > 0


def check_dispatch(found):
    for row in found["rows"]:
        assert set(row["milliseconds"]) == {"one dispatch", "step by step"} and row["steps"] > 1


def check_on_policy(found):
    for row in found["rows"]:
        assert row["tokens_per_second"] == pytest.approx(2 * row["new_tokens_per_second"])  # as many as in the prompts


def check_seeds(found):
    teacher, student = found["rows"]
    assert teacher["source"] == "trained" and student["seed"] == 0 and student["steps"] == 2
    assert 0 <= student["test_accuracy"] <= 1 and found["progress"] == {}


CONTENT = {
    "checks": check_checks,
    "composed": check_composed,
    "vocabulary": check_vocabulary,
    "images": check_images,
    "dispatch": check_dispatch,
    "on_policy": check_on_policy,
    "seeds": check_seeds,
}


@pytest.mark.slow
def test_the_command_runs_a_part_in_a_process_of_its_own_and_reports_what_it_did_not_reach(tmp_path):
    root = pathlib.Path(__file__).parents[2]
    folders = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]
    run = [sys.executable, "-m", "benchmarks.accelerator", *folders]
    refused = subprocess.run(run, cwd=root, capture_output=True, text=True)
    assert refused.returncode == 2 and "--rehearse" in refused.stderr and not (tmp_path / "out").exists()
    rehearsal = [*run, "--rehearse", "--minutes", "60", "--parts", "vocabulary", "seeds"]
    done = subprocess.run(rehearsal, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(written(tmp_path / "out" / "vocabulary.json")["rows"]) == 6
    page = (tmp_path / "out" / "report.md").read_text()
    assert "Skipped: no images were given." in page and "linear_generalized_jsd, chunk 16" in page
    log = (tmp_path / "out" / "accelerator.log").read_text()
    assert "vocabulary: ended with status 0" in log and "linear_soft_target_kl, default chunk: " in log
