"""Cells of the CIFAR-100 benchmark, on a few small random images: what they leave, and that they are made once."""

import dataclasses
import fcntl
import json
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxkd
from experiments.cifar100 import report
from experiments.kit import cell as cells
from experiments.kit import files, inputs, methods, taps, teachers, training
from experiments.kit.recipe import Protocol
from experiments.kit.teachers import Place
from jaxkd import distillers, weights
from tests import references
from tests.experiments import cifar100_tiny as tiny
from tests.weights.torch_zoo_test import resnet_shapes

PROTOCOL = Protocol(epochs=2, teacher_epochs=1, batch_size=8)
CACHED = dataclasses.replace(PROTOCOL, cached=True)
STEPS = 4  # 16 images, two batches in each of two epochs; an initialization adds one


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """With a teacher that need not be trained."""
    out = tmp_path_factory.mktemp("cifar100")
    return Place(tiny.PROBLEM, PROTOCOL, None, out, {tiny.TEACHER: tiny.save(out)}, progress=False)


@pytest.fixture
def states(monkeypatch):
    """The last state of every training of the test."""
    found, run = [], training.run

    def noted(*arguments, **options):
        result = run(*arguments, **options)
        found.append(result.state)
        return result

    monkeypatch.setattr(training, "run", noted)
    return found


def cell(method, seed=0):
    return cells.Cell(tiny.TEACHER, tiny.STUDENT, method, seed)


def run(wanted, place):
    """Trains a cell and returns the content of its ``cell.json``."""
    ((_, kept),) = cells.run([wanted], [wanted.seed], place)
    return kept


def last_row(directory):
    """What a training has logged last."""
    return json.loads((directory / "metrics.jsonl").read_text().splitlines()[-1])


def assert_complete(found, directory):
    """What a cell leaves is finite, has all that the report reads, and is all that it leaves of its training."""
    assert json.loads((directory / "cell.json").read_text()) == found
    judge = "validation/accuracy" if found["protocol"]["holdout"] else "test/accuracy"
    held = {"validation/accuracy", "validation/nll"} if found["protocol"]["holdout"] else set()
    of_test = {f"test/{name}" for name in ("accuracy", "agreement", "nll", "teacher_accuracy")}
    assert found["curve"].keys() == {"epoch", "train/loss"} | of_test | held
    assert found["best"].keys() == {"epoch", "by", "test/accuracy"} and found["best"]["by"] == judge
    best = found["curve"]["epoch"].index(found["best"]["epoch"])
    assert found["curve"][judge][best] == max(found["curve"][judge])
    assert found["best"]["test/accuracy"] == found["curve"]["test/accuracy"][best]
    assert found["curve"]["test/accuracy"][-1] == pytest.approx(found["test"]["accuracy"])
    assert found["curve"]["test/agreement"][-1] == pytest.approx(found["test"]["agreement"])
    assert found["test"]["cka"].keys() == {"stage1", "stage2", "stage3"}
    assert found["parameters"] == 83_892 and found["seconds"] > 0 and found["images_per_second"] > 0
    numbers = jax.tree.leaves([found["curve"], found["test"], found["seconds"]])  # of absent classes there is None
    assert np.isfinite(numbers).all()
    assert not (directory / "checkpoints").exists()
    page = report.markdown(report.collect([found], {}))
    assert tiny.PAIR.replace(":", " → ") in page and "not finite" not in page


@pytest.mark.slow
@pytest.mark.parametrize("name", ["student", "at", "ab", "ft", "crd"])
def test_a_cell_of_every_kind(place, states, name):
    if name == "student":  # judged by half of the images
        place = place._replace(protocol=dataclasses.replace(PROTOCOL, holdout=tiny.TRAIN // 2))
    found = run(cell(name), place)
    (state,) = states
    assert found["steps"] == {"student": STEPS // 2, "ab": STEPS + 1, "ft": STEPS + 1}.get(name, STEPS)
    assert_complete(found, place.directory(cell(name)))
    assert tiny.moved(state.student.params)
    kept = weights.load_safetensors(place.directory(cell(name)) / "student.safetensors")
    jax.tree.map(np.testing.assert_array_equal, weights.fit_to(state.student, kept), state.student)
    if name == "student":
        assert not jax.tree.leaves(state.teacher)
    else:
        jax.tree.map(np.testing.assert_array_equal, state.teacher, tiny.variables())
    kept = weights.load_safetensors(place.teacher_file(tiny.TEACHER).parent / "weights.safetensors")
    jax.tree.map(np.testing.assert_array_equal, weights.fit_to(tiny.variables(), kept), tiny.variables())
    if name == "crd":
        assert {len(bank) for bank in state.objective.state["crd"]["bank"].values()} == {tiny.TRAIN}
    if name == "ft":
        learned, remembered = state.objective.params["ft"]["paraphraser"], state.objective.state["ft"]["paraphraser"]
        jax.tree.map(np.testing.assert_array_equal, learned, remembered)
        assert "norms" in state.objective.params["ft"]  # the published rows belong to a translator with BatchNorms


@pytest.mark.slow
def test_an_interrupted_cell_ends_as_one_that_was_not(place, tmp_path, monkeypatch):
    whole = place._replace(protocol=CACHED)
    expected = run(cell("kd"), whole)
    assert_complete(expected, whole.directory(cell("kd")))
    again = whole._replace(out=tmp_path)
    trained = training.run

    def interrupted(*arguments, **options):
        def interrupt(step, found, state):
            raise KeyboardInterrupt

        return trained(*arguments, **options, on_eval=interrupt)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "run", interrupted)
        run(cell("kd"), again)
    directory = again.directory(cell("kd"))
    assert (directory / "checkpoints").exists() and not (directory / "cell.json").exists()
    before = last_row(directory)
    assert before["step"] == STEPS // 2 and before["seconds"] > 0
    found = run(cell("kd"), again)
    timings = ("seconds", "images_per_second")
    assert {name: found[name] for name in found if name not in timings} == {
        name: expected[name] for name in expected if name not in timings
    }
    assert found["seconds"] > before["seconds"]
    files = [place.directory(cell("kd")) / "student.safetensors" for place in (whole, again)]
    jax.tree.map(np.testing.assert_array_equal, *map(weights.load_safetensors, files))


def test_a_cell_is_run_once_and_by_one_process(place, monkeypatch, capsys):
    ran, reports = [], []

    def run(pending, seeds, place):
        (cell,) = pending
        ran.append(cell)
        place.file(cell).parent.mkdir(parents=True)
        place.file(cell).write_text("{}")
        kept = {"test": {"accuracy": 0.5, "agreement": 0.25}, "best": {"test/accuracy": 0.625}, "seconds": 3.0}
        return [(cell, kept)]

    monkeypatch.setattr(cells, "run", run)
    wanted = cells.wanted([tiny.PAIR], ["kd", "sp"], [5, 6], tiny.PROBLEM)
    directory = place.directory(wanted[1])
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(directory.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cells.run_free(wanted, place, lambda: reports.append(len(ran))) == 1
        assert ran == [wanted[0], *wanted[2:]] and reports == [1, 2, 3]
    assert "[1/4] resnet14:resnet8 kd seed 5: test accuracy 50.00 % (best epoch 62.50 %)" in capsys.readouterr().out
    assert cells.run_free(wanted, place) == 0 and ran[3:] == [wanted[1]]
    assert cells.run_free(wanted, place) == 0 and len(ran) == 4


def test_a_cell_that_another_process_has_just_finished_is_not_run_again(place, monkeypatch):
    (wanted,) = cells.wanted([tiny.PAIR], ["vid"], [0], tiny.PROBLEM)
    flock = fcntl.flock

    def late(lock, how):
        flock(lock, how)
        place.file(wanted).parent.mkdir(parents=True, exist_ok=True)
        place.file(wanted).write_text("{}")

    monkeypatch.setattr(fcntl, "flock", late)
    monkeypatch.setattr(cells, "run", lambda *_: pytest.fail("it is finished"))
    assert cells.run_free([wanted], place) == 0


def test_the_cells_of_a_command_come_seed_by_seed():
    found = cells.wanted(["resnet20:resnet8", "vgg13:vgg8"], ["student", "kd"], [3, 4], tiny.PROBLEM)
    assert [str(cell) for cell in found[:4]] == [
        "resnet20:resnet8 student seed 3",
        "resnet20:resnet8 kd seed 3",
        "resnet20:resnet8 student seed 4",
        "resnet20:resnet8 kd seed 4",
    ]
    assert len(found) == 8 and len({cell.path for cell in found}) == 8
    assert str(found[-1].path) == "vgg13-vgg8/kd/seed4"
    assert [cell.method for cell in cells.wanted(["wrn_40_2:wrn_40_1"], ["kd", "fsp"], [0], tiny.PROBLEM)] == ["kd"]


# Teachers.


@pytest.mark.slow
def test_a_teacher_is_trained_once(tmp_path, monkeypatch, states):
    place = Place(tiny.PROBLEM, PROTOCOL, None, tmp_path, {}, progress=False)
    first = place.teacher(tiny.STUDENT)
    told = json.loads(place.teacher_file(tiny.STUDENT).read_text())
    assert told["source"] == "trained" and told["steps"] == 2 and told["parameters"] == 83_892
    assert told["protocol"] == dataclasses.asdict(PROTOCOL)
    assert told["curve"]["epoch"] == [1.0] and told["best"]["epoch"] == 1.0
    assert told["curve"]["test/accuracy"] == [pytest.approx(told["test"]["accuracy"])]
    assert tiny.moved(first.variables.params) and first.test_logits.shape == (tiny.TEST, 100)
    jax.tree.map(np.testing.assert_array_equal, first.variables, states[0].student)
    assert not jax.tree.leaves(states[0].teacher)
    monkeypatch.setattr(teachers, "_train", lambda *_: pytest.fail("it is there"))
    longer = place._replace(protocol=dataclasses.replace(CACHED, epochs=7, images=8))  # students of another protocol
    second = longer.teacher(tiny.STUDENT)
    assert second.directory == first.directory
    jax.tree.map(np.testing.assert_array_equal, first[1:3], second[1:3])


def test_a_second_process_waits_for_the_teacher(tmp_path, monkeypatch, capsys):
    asked = []

    def busy(lock, how):
        asked.append(how)
        if how & fcntl.LOCK_NB:
            raise BlockingIOError

    monkeypatch.setattr(fcntl, "flock", busy)
    with files.claim(tmp_path / "resnet8", wait=True) as ours:
        assert ours
    assert asked == [fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_EX]
    assert "waiting for another process" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_a_teacher_from_pytorch(tmp_path, monkeypatch, suffix):
    random = np.random.default_rng(0)
    shapes = resnet_shapes(8, (16, 16, 32, 64))
    state_dict = {name: np.asarray(random.uniform(0.5, 1, shape), np.float32) for name, shape in shapes.items()}
    file = tmp_path / f"teacher.{suffix}"
    if suffix == "pth":  # what their training leaves: the weights among other things
        file.write_bytes(b"a pickle")
        there = {"epoch": 240, "model": state_dict, "accuracy": 72.5}
        monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=lambda path, **_: there))
    else:
        save_file({name: np.ascontiguousarray(array) for name, array in state_dict.items()}, file)
    place = Place(tiny.PROBLEM, PROTOCOL, None, tmp_path, {tiny.STUDENT: str(file)}, progress=False)
    found = place.teacher(tiny.STUDENT)
    np.testing.assert_array_equal(found.variables.params["Dense_0"]["kernel"], state_dict["fc.weight"].T)
    np.testing.assert_array_equal(
        found.variables.params["ResNetStem_0"]["Conv_0"]["kernel"], state_dict["conv1.weight"].transpose(2, 3, 1, 0)
    )
    told = json.loads(place.teacher_file(tiny.STUDENT).read_text())
    assert told["source"] == f"sha256 {teachers.digest(str(file))}" and "curve" not in told


# Where a method's teacher outputs come from.


def losses_of(method, wanted, place):
    """What every step of the first epoch reports."""
    trained = place.teacher(tiny.TEACHER)
    train, _ = cells.training_set(place)
    teacher, loader = cells.source(wanted, method, trained, train, place)
    student = tiny.PROBLEM.model(tiny.STUDENT, method.student_taps(tiny.TEACHER, tiny.STUDENT))
    setting = methods.Setting(tiny.TEACHER, tiny.STUDENT, STEPS, train.arrays["label"])
    built = methods.build(method, setting, student, teacher, tiny.PROBLEM)
    kd = distillers.preprocess(built, train_transform=cells.views(wanted.seed, place))
    batches = iter(loader.batches())
    batch = next(batches)
    state, step, found = kd.init(jax.random.key(0), batch), jax.jit(kd.step), []
    for _ in range(STEPS // 2):
        state, told = step(state, batch)
        found.append(jaxkd.metrics.compute(told))
        batch = next(batches)
    return found


@pytest.mark.slow
def test_a_cached_teacher_is_the_teacher(place):
    """Of its logits and of its embedding, over an epoch of updates."""

    def terms(of, weights):
        return jaxkd.combine(**{name: methods.METHODS[name].objective(of) for name in ("kd", "rkd")})

    both = methods.Method("both", terms, taps.fixed("pooled"))
    # Seed 0 sees the shared views also where every seed has its own.
    cached, live = (losses_of(both, cell("rkd"), place._replace(protocol=one)) for one in (CACHED, PROTOCOL))
    assert [found.pop("unseen_inputs") for found in cached] == [0] * len(live)
    assert [found.keys() for found in cached] == [found.keys() for found in live]
    for ours, theirs in zip(cached, live, strict=True):
        assert theirs["kd/kd"] > 0 and theirs["rkd/distance"] > 0 and theirs["rkd/angle"] > 0
        for term in theirs:
            np.testing.assert_allclose(ours[term], theirs[term], rtol=2e-3, err_msg=term)
    assert cached != live  # what is kept is kept as float16


@pytest.mark.slow
def test_a_cell_trains_on_its_views(place, monkeypatch):
    """The views of `cells.views`, for every method: a baseline that saw others could not be compared."""
    asked, used = [], []
    monkeypatch.setattr(cells, "views", lambda seed, place: asked.append((seed, place.protocol)) or "views")

    def preprocess(kd, *, train_transform, eval_transform):
        used.append(train_transform)
        raise KeyboardInterrupt

    monkeypatch.setattr(jaxkd.distillers, "preprocess", preprocess)
    for name in ("student", "at"):
        with pytest.raises(KeyboardInterrupt):
            run(cell(name, 8), place)
    assert asked == [(8, PROTOCOL)] * 2 and used == ["views"] * 2


def test_which_methods_read_the_cache():
    found = {name for name in methods.METHODS if cells.reads_cache(cell(name), CACHED)}
    assert found == {"student", "kd", "cc", "rkd", "pkt", "crd", "crd_kd", "dkd", "dist", "logit_std"}
    assert not any(cells.reads_cache(cell(name), PROTOCOL) for name in methods.METHODS)


@pytest.mark.slow
def test_the_margins_of_a_teacher(place):
    margin = place.teacher(tiny.TEACHER).margin("stage2_preact")
    norm = tiny.variables().params["ResNetStage_1"]["BasicBlock_1"]["BatchNorm_1"]
    np.testing.assert_allclose(margin, references.overhaul_margin(norm["bias"], norm["scale"]), rtol=1e-4)


def test_outputs_are_of_every_image_in_order(monkeypatch):
    """Also where the last piece is not full, which is filled up so that one program serves all."""
    shapes = []

    def apply(variables, batch, *, key, train):
        shapes.append(batch["image"].shape)
        assert key is None and not train
        return {"logits": (batch["image"] * variables.params).mean((1, 2)).astype(jnp.bfloat16)}, {}

    monkeypatch.setattr(inputs, "EVAL_BATCH", 10)
    test = tiny.whole(None, "test")
    found = training.outputs_of(
        jaxkd.Model(lambda *_: None, apply), jaxkd.Variables(2.0), test, ("logits",), tiny.PROBLEM.normalize
    )["logits"]
    expected = 2 * tiny.PROBLEM.normalize({"image": test.arrays["image"]})["image"].mean((1, 2))
    np.testing.assert_allclose(found, expected, atol=0.02)
    assert found.dtype == np.float32 and shapes == [(10, tiny.SIZE, tiny.SIZE, 3)]
