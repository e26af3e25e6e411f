"""The experiment of all schemes: its rows, its costs, what it compares, what it leaves, and that it goes on."""

import json

import jax
import numpy as np
import pytest

from experiments.kit.inputs import Seeds
from experiments.kit.rows import cost
from experiments.schemes import method, report
from experiments.schemes import problem as problems
from experiments.schemes.config import Config, checked
from experiments.schemes.main import cli
from experiments.schemes.methods import METHODS
from jaxkd import data

TINY = Config(seeds=2, images=64, epochs=10, teacher_epochs=1)
ARGUMENTS = ("--seeds", "2", "--images", "64", "--epochs", "10", "--teacher-epochs", "1", "--no-timing")
# One of each kind; a row differs from others of its kind by numbers.
KINDS = (
    *("online", "dml_mixed", "okddip", "one", "kdcl_linear", "byot", "cs_kd", "ddgsd", "ps_kd", "tf_self", "voted"),
    *("knowledge_flow", "assistant", "to_lstm", "spectrum", "strokes", "dafl", "inversion", "cmi"),
    *("quantized2", "few_sample", "lwf_kept", "retrospection", "ema_crd"),
)


@pytest.fixture(scope="module")
def setting():
    config = checked(TINY)
    return method.Setting(problems.of(config), config)


def own_of(setting, names):
    """Untrained networks in the place of trained ones."""
    batch = {"image": np.zeros((1, *setting.problem.shape), np.float32)}
    return {name: setting.problem.network(name).init(jax.random.key(0), batch) for name in names}


def batch_of(setting, trial):
    loader = trial.loader(setting.problem.students[0], 0)
    return jax.eval_shape(lambda: loader.gather(loader.arrays, 0))


QUICK = ("tf_self", "spectrum")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in KINDS]
)
def test_a_row_makes_a_distiller(setting, name):
    """Its step, for a seed, from batches of the row's own input; whoever it is compared with as well."""
    row = METHODS[name]
    made = [row.build(setting), *(build(setting, 20) for build in (row.alone, row.offline) if build is not None)]
    for trial in made:
        batch, own = batch_of(setting, trial), own_of(setting, trial.needs)
        seen = np.zeros((8, *setting.problem.shape), np.uint8)

        def take(own, batch, trial=trial, seen=seen):
            kd = trial.measured(own)
            state = kd.init(jax.random.key(0), batch)
            state, metrics = kd.step(state, batch)
            return state, metrics, kd.evaluate(state, {"image": seen, "label": np.zeros(8, np.int32)})

        state, metrics, evaluated = jax.eval_shape(take, own, batch)
        assert "accuracy" in evaluated and metrics
        alone = jax.eval_shape(lambda state, trial=trial: trial.pick(state), state)

        def said(variables, image, trial=trial):
            return trial.model.apply(variables, trial.look({"image": image}), key=None, train=False)[0]["logits"]

        outputs = jax.eval_shape(said, alone, seen)
        assert outputs.shape == (8, setting.problem.classes)


@pytest.mark.slow
def test_flops_are_those_of_the_parts(setting):
    """A chain costs what its links cost: the middle network and the student, each with its teacher's forward pass."""
    own = own_of(setting, ["teacher", "middle"])
    chain = METHODS["assistant"].build(setting)
    batch = batch_of(setting, chain)

    def link(size, before):
        trial = method.taught(
            setting, setting.steps, setting.problem.network(size), lambda own: setting.teacher(own, before, before)
        )
        return setting.steps * cost.flops_of_step(trial.make(own), batch)

    expected = link("middle", "teacher") + link("student", "middle")
    assert chain.flops(own, batch) == pytest.approx(expected, rel=1e-6)
    alone = method.alone(setting, 7)
    assert alone.flops({}, batch) == 7 * cost.flops_of_step(alone.make({}), batch)


@pytest.mark.parametrize("steps", [240, 777, 1200, 3833, 12_345, 99_999])
def test_equal_cost_is_nearly_equal(steps):
    found = cost.budget(steps)
    assert abs(found / steps - 1) < 0.04
    assert found % 12 == 0
    assert cost.budget(found) == found  # so that what is rounded twice stays


def test_each_seed_has_its_own_batches(setting):
    loaders = [data.Resident(images, 16, drop_remainder=True) for images in setting.problem.students]
    together = Seeds(loaders, [3, 8])
    batch = together.gather(together.arrays, 2)
    for i, (loader, seed) in enumerate(zip(loaders, (3, 8), strict=True)):
        alone = loader.gather(loader.arrays, 2, seed=seed)
        for name, x in alone.items():
            np.testing.assert_array_equal(batch[name][i], x)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("schemes") / "whole"
    assert cli([*ARGUMENTS, "--out", str(out), "--schemes", "offline", "tf_virtual", "lwf", "rounded2"]) == 0
    return out


@pytest.mark.slow
def test_what_a_run_leaves(whole):
    results = json.loads((whole / "results.json").read_text())
    assert list(results["rows"]) == [name for name in METHODS if name in ("offline", "tf_virtual", "lwf", "rounded2")]
    for found in results["rows"].values():
        for one in (found, found["alone"], found["offline"]):
            assert len(one["accuracy"]) == 2 and all(0 <= value <= 1 for value in one["accuracy"])
        for which in ("alone", "offline"):
            spent = found[which]["steps"] * found[which]["flops_per_step"]
            assert abs(spent - found["flops"]) <= max(found[which]["flops_per_step"] / 2, 0.04 * found["flops"])
    # Offline distillation is compared with itself.
    offline = results["rows"]["offline"]
    assert offline["accuracy"] == offline["offline"]["accuracy"]
    extra = results["rows"]["rounded2"]["extra"]
    assert 4 * extra["codes"] < extra["bytes"] < extra["float32_bytes"]
    for name in ("gains.png", "curves.png"):
        assert (whole / name).read_bytes().startswith(b"\x89PNG")
    said = (whole / "report.md").read_text()
    for part in ("Few bits", "Task after task", "fine-tuned, no teacher", "virtual teacher (Tf-KD)"):
        assert part in said


@pytest.mark.slow
def test_it_goes_on_where_it_was(whole, capsys):
    """A row that is lost is made again of what was trained; nothing else is trained again, the numbers are equal."""
    row = whole / "rows" / "tf_virtual.json"
    before = row.read_text()
    row.unlink()
    (whole / "trainings" / "tf_virtual.json").unlink()
    assert cli([*ARGUMENTS, "--out", str(whole), "--schemes", "tf_virtual"]) == 0
    assert json.loads(row.read_text()) == json.loads(before)
    printed = capsys.readouterr().out
    assert "offline:" not in printed and "tf_virtual:" in printed and "nothing was trained" not in printed
    assert cli([*ARGUMENTS, "--out", str(whole), "--schemes", "tf_virtual"]) == 0
    assert f"\nnothing was trained: all results were there\nreport   {whole}" in capsys.readouterr().out


@pytest.mark.slow
def test_what_it_refuses(whole, capsys):
    assert cli([*ARGUMENTS, "--out", str(whole), "--batch", "16"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert cli([*ARGUMENTS, "--out", str(whole), "--schemes", "dmll"]) == 2
    assert "got dmll" in capsys.readouterr().err
    with pytest.raises(ValueError, match="--seeds: expected at least 2, got 1"):
        checked(Config(seeds=1))
    with pytest.raises(ValueError, match="give --data-dir too"):
        checked(Config(teacher_weights="weights.safetensors"))


def test_settings_that_cannot_be_run_are_refused(tmp_path, capsys):
    assert cli([*ARGUMENTS, "--out", str(tmp_path / "out"), "--schemes", "dmll"]) == 2
    assert "got dmll" in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="--seeds: expected at least 2, got 1"):
        checked(Config(seeds=1))
    with pytest.raises(ValueError, match="give --data-dir too"):
        checked(Config(teacher_weights="weights.safetensors"))


def test_what_is_said_of_a_difference():
    alone = {"accuracy": [0.80, 0.81, 0.82]}
    for accuracy, said in (([0.9, 0.91, 0.92], "helps"), ([0.7, 0.71, 0.72], "hurts"), ([0.7, 0.9, 0.82], "unclear")):
        assert report.verdict({"accuracy": accuracy, "alone": alone}, "alone") == said


def test_forgetting_is_read_from_the_curve():
    """Two tasks: 0.9 on the first, of which 0.4 is left after the second."""
    curve = {"step": [5, 10], "accuracy/0": [0.9, 0.4], "accuracy/1": [0.1, 0.8]}
    curve |= {"accuracy_within/0": [0.9, 0.9], "accuracy_within/1": [0.5, 0.8]}
    title, average, forgotten, backward, told = report._forgotten("x", {"curve": [curve, curve]})
    assert (title, average, forgotten) == ("x", "60.00 ± 0.00", "50.00 ± 0.00")
    assert (backward, told) == ("-50.00 ± 0.00", "85.00 ± 0.00")
