"""The command of a field: cells, equal cost, resuming, reports."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from experiments.kit.tasks import run
from experiments.kit.tasks.task import Figure, Measure, Method, Task, Training
from jaxkd import data, losses, metrics


class Toy:
    """Points on a line: the label is the sign of the first coordinate."""

    def __init__(self, config, folder):
        self.opened = (config.steps, folder)
        x = np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32)
        arrays = {"x": x, "label": (x[:, 0] > 0).astype(np.int32), "index": np.arange(64, dtype=np.int32)}
        self.loader = data.Resident(arrays, 16, seed=0)
        self.model = jaxkd.adapters.linen(nn.Dense(2), inputs="x")

    def training(self, method, seed, steps):
        teacher, terms = jaxkd.teachers.none(), {}
        if method != "student":
            wide = jaxkd.adapters.linen(nn.Sequential([nn.Dense(64), nn.relu, nn.Dense(2)]), inputs="x")
            weights = wide.init(jax.random.key(7), {"x": jnp.zeros((1, 3))})
            teacher = jaxkd.teachers.frozen(wide, weights)
            terms["kd"] = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=2.0)
        ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
        kd = jaxkd.distill(
            self.model, teacher, jaxkd.combine(ce=ce, **terms), optimizer=optax.sgd(0.1), metrics=metrics.classification
        )
        return Training(kd, self.loader, steps, {"validation": data.Resident(self.loader.arrays, 16, shuffle=False)})

    def measure(self, method, seed, state):
        x = jnp.asarray(self.loader.arrays["x"])
        logits = self.model.apply(state.student, {"x": x}, key=None, train=False)[0]["logits"]
        return {"accuracy": jnp.mean(jnp.argmax(logits, -1) == jnp.asarray(self.loader.arrays["label"]))}

    def samples(self, method, state):
        return [f"a line of {method}"]

    def references(self):
        return {"teacher": {"accuracy": 1.0, "parameters": 1234}}


TASK = Task(
    title="Toy",
    about="Points on a line.",
    measures={"accuracy": Measure("accuracy (%)", scale=100)},
    methods={"student": Method("student alone"), "kd": Method("soft targets", "Hinton et al. (2015)")},
    steps=12,
    evaluations=3,
    open=Toy,
    figures={"own": Figure("Its own figure", lambda results: repr(sorted(results["rows"])).encode())},
)


def command(out, *more):
    return run.cli("toy", {"toy": TASK}, ["toy", "--out", str(out), "--seeds", "2", *more])


def test_another_set_is_refused_by_a_task_of_one_set(tmp_path, capsys):
    assert run.cli("toys", {"toy": TASK}, ["toy", "--dataset", "other", "--out", str(tmp_path)]) == 2
    assert "the task toy is of one set" in "".join(capsys.readouterr())


def test_another_set_has_a_folder_of_its_own(tmp_path):
    task = TASK._replace(any_set=True)
    assert run.cli("toys", {"toy": task}, ["toy", "--dataset", "a/b", "--seeds", "1", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "toys" / "toy-a-b" / "report.md").exists()


def test_cells_are_trained_once_and_reported(tmp_path, capsys):
    assert command(tmp_path) == 0
    folder = tmp_path / "toy" / "toy"
    results = json.loads((folder / "results.json").read_text())
    assert set(results["rows"]) >= {"student", "kd"}
    alone, kd = results["rows"]["student"], results["rows"]["kd"]
    values = [np.array(one["measures"]["accuracy"]["values"]) for one in (kd, alone)]
    np.testing.assert_allclose(kd["gains"]["steps"]["mean"], np.mean(values[0] - values[1]))
    # The teacher's forward pass costs more: the student alone is trained again, with as many FLOPs.
    (more,) = [name for name in results["rows"] if name.startswith("student@")]
    assert results["rows"][more]["flops"] == pytest.approx(kd["flops"], rel=0.1)
    assert results["rows"][more]["steps"] > alone["steps"] == 12
    lowest = [min(row["validation/loss"] for row in alone["curve"][seed]) for seed in ("0", "1")]
    assert alone["best"]["values"] == lowest
    page = (folder / "report.md").read_text()
    assert f"| {np.mean(lowest):.3f} |" in page
    assert "| teacher | 100.00 |" in page and "a line of kd" in page
    assert (folder / "gains.png").stat().st_size > 5000 and (folder / "curves.png").stat().st_size > 5000
    assert "![Its own figure](own.png)" in page
    assert (folder / "own.png").read_text() == repr(sorted(results["rows"]))
    cells = {path: path.read_bytes() for path in (folder / "cells").rglob("*.json")}
    assert capsys.readouterr().out.endswith(f"\nreport   {folder}/report.md\npicture  {folder}/own.png\n")
    assert command(tmp_path) == 0
    again = capsys.readouterr().out
    assert "seed 0:" not in again and "\nnothing was trained" in again
    assert cells == {path: path.read_bytes() for path in (folder / "cells").rglob("*.json")}


def test_other_steps_and_names_are_refused(tmp_path, capsys):
    assert command(tmp_path, "--methods", "student") == 0
    assert command(tmp_path, "--steps", "24") == 2
    assert "steps: 12 there, 24 here" in capsys.readouterr().err
    assert command(tmp_path, "--methods", "nothing") == 2
    assert "expected some of student, kd, got nothing" in capsys.readouterr().err


@pytest.mark.slow
def test_a_task_whose_cost_is_not_that_of_flops(tmp_path):
    measures = {**TASK.measures, "examples_per_second": Measure("examples a second", digits=0)}
    task = TASK._replace(equal_cost=False, seeds=1, measures=measures)
    assert run.cli("toy", {"toy": task}, ["toy", "--out", str(tmp_path)]) == 0
    folder = tmp_path / "toy" / "toy"
    results = json.loads((folder / "results.json").read_text())
    assert list(results["rows"]) == ["student", "kd"]  # no student alone of another number of steps
    assert list(results["rows"]["kd"]["curve"]) == ["0"]
    assert results["rows"]["kd"]["measures"]["examples_per_second"]["mean"] > 0
    page = (folder / "report.md").read_text()
    assert "gain, equal steps" in page and "FLOPs" not in page.partition("## Methods")[0].replace("of all FLOPs", "")
