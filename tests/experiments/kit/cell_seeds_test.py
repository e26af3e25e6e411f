"""Seeds trained as one program: each is its own run, whoever else is at work, and whenever the process ends."""

import doctest
import functools
import json
import types

import flax.linen as nn
import jax
import numpy as np
import pytest

import jaxkd
from experiments.cifar100 import main, problem, report
from experiments.kit import cell as cells
from experiments.kit import command, files, inputs, teachers, training
from experiments.kit.recipe import Protocol
from experiments.kit.teachers import Place
from jaxkd import data, weights
from jaxkd.distillers import preprocess, select_run, sweep
from tests import tiny

SEEDS = [0, 1]
KD, FT, CRD = (cells.Cell("resnet8", "resnet8", method, 0) for method in ("kd", "ft", "crd"))
IMAGES, BATCH = 10, 4  # the last of an epoch's three batches is not full


@functools.cache
def small(data_dir, split):
    """A tenth of the classes, and images small enough for convolutions that are slow; the test images are the same."""
    image = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), np.uint8)
    return data.from_arrays(image, np.arange(IMAGES) % 10, num_classes=100, name="small")


class Stage(nn.Module):
    """A convolution that halves the map, and what comes after one."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(6, (3, 3), strides=2, use_bias=False)(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))


class Pool(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x.mean(axis=(1, 2))


class Network(nn.Module):
    """In the place of resnet8: with its stages, and quick to compile."""

    @nn.compact
    def __call__(self, x, train=False):
        for _ in range(3):
            x = Stage()(x, train)
        return nn.Dense(100)(Pool()(x))


TAPS = {"stage1": "Stage_0", "stage2": "Stage_1", "stage3": "Stage_2", "pooled": "Pool_0"}


def model(name, taps=(), bf16=False):
    return jaxkd.adapters.linen(Network(), taps={tap: TAPS[tap] for tap in taps})


PROBLEM = problem.PROBLEM._replace(load=small, model=model)


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "resnet8.safetensors"
    image = {"image": np.zeros((1, 8, 8, 3), np.float32)}
    weights.save_safetensors(path, model("resnet8").init(jax.random.key(7), image))
    return str(path)


@pytest.fixture
def place(tmp_path, teacher_file):
    return at(tmp_path, teacher_file)


def at(out, teacher_file, cached=False):
    protocol = Protocol(epochs=2, teacher_epochs=2, batch_size=BATCH, cached=cached)
    return Place(PROBLEM, protocol, None, out, {"resnet8": teacher_file}, progress=False)


def of(cell, seeds=SEEDS):
    return [cell._replace(seed=seed) for seed in seeds]


def student(place, cell):
    return weights.load_safetensors(place.directory(cell) / "student.safetensors")


class Killed(Exception):
    """The process, at a moment that is hard to bear."""


@pytest.fixture(scope="module")
def both(tmp_path_factory, teacher_file):
    """KD from cached outputs: seeds as one program, killed between the first cell and the second; and one alone."""
    ours, alone = (at(tmp_path_factory.mktemp(name), teacher_file, cached=True) for name in ("together", "alone"))

    def dies(cell, *arguments):
        if cell.seed:
            raise Killed
        return kept(cell, *arguments)

    kept = cells.keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cells, "keep", dies)
        with pytest.raises(Killed):
            cells.run_free(of(KD), ours, vmapped=True)
    assert [ours.file(cell).exists() for cell in of(KD)] == [True, False]
    shared = ours.directory(KD).with_name("seeds-0-1")
    trained = (shared / "metrics.jsonl").read_text()
    assert cells.run_free(of(KD), ours, vmapped=True) == 0
    assert trained == (shared / "metrics.jsonl").read_text()
    ((_, kept),) = cells.run([KD._replace(seed=1)], [1], alone)
    return ours, alone, kept


def test_a_small_cell_is_trained_measured_and_kept(place):
    ((cell, kept),) = cells.run([KD._replace(method="student")], [0], place)
    assert json.loads(place.file(cell).read_text()) == kept and kept["steps"] == 6
    assert kept["test"].keys() >= {"accuracy", "agreement", "cka"} and kept["curve"]["epoch"] == [1.0, 2.0]
    assert student(place, cell) and not (place.directory(cell) / "checkpoints").exists()


@pytest.mark.slow
def test_a_seed_is_its_own_run(both):
    ours, alone, expected = both
    found = json.loads(ours.file(KD._replace(seed=1)).read_text())
    assert found.keys() == expected.keys() and found["curve"].keys() == expected["curve"].keys()
    for name in ("pair", "method", "seed", "protocol", "steps", "parameters", "best", "versions"):
        assert found[name] == expected[name], name
    for name, values in expected["curve"].items():
        assert found["curve"][name] == pytest.approx(values, rel=1e-3), name
    for name in ("nll", "kl_to_teacher", "cka"):
        assert found["test"][name] == pytest.approx(expected["test"][name], rel=1e-3), name
    first, one = (student(ours, cell) for cell in of(KD))
    tiny.assert_close(one, student(alone, KD._replace(seed=1)), rtol=1e-3, atol=1e-4)
    assert max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), first, one))) > 0.05


@pytest.mark.slow
def test_the_seeds_share_the_time(both):
    ours, _, _ = both
    rows = (ours.directory(KD).with_name("seeds-0-1") / "metrics.jsonl").read_text().splitlines()
    all_seconds = json.loads(rows[-1])["seconds"]
    found = [json.loads(ours.file(cell).read_text()) for cell in of(KD)]
    assert sum(cell["seconds"] for cell in found) == pytest.approx(all_seconds)
    assert found[0]["images_per_second"] == pytest.approx(2 * found[0]["steps"] * BATCH / all_seconds)


@pytest.mark.slow
def test_no_checkpoints_are_left_and_what_is_finished_is_not_run_again(both, monkeypatch):
    ours, _, _ = both
    assert not [*ours.folder.rglob("checkpoints")]
    monkeypatch.setattr(cells, "run", lambda *_: pytest.fail("was run"))
    assert cells.run_free(of(KD), ours, vmapped=True) == 0


def test_the_best_epoch_is_chosen_on_what_is_held_out():
    curve = {"epoch": [1.0, 2.0], "test/accuracy": [0.5, 0.25], "validation/accuracy": [0.0, 1.0]}
    assert training.best(curve) == {"epoch": 2.0, "by": "validation/accuracy", "test/accuracy": 0.25}


@pytest.mark.slow
@pytest.mark.parametrize("cell", [FT, CRD], ids=lambda cell: cell.method)
def test_steps_of_stages_and_banks_with_views_of_their_own(cell, place):
    """A live teacher; an initialization that comes first, or a bank; and every seed's own order and views."""
    seeds, steps = [3, 5], 2
    work = cells.prepare(cell._replace(seed=3), place)
    loader = inputs.Seeds([work.loader], seeds)
    kd = sweep(lambda seed: cells.placed(work, seed, place), batch_axis=0, seed=seeds)
    state = kd.init(jax.numpy.stack([jax.random.key(seed) for seed in seeds]), loader.gather(loader.arrays, 0))
    own = cells.prepare(cell._replace(seed=5), place)
    alone = preprocess(own.kd, train_transform=PROBLEM.augment(5))
    expected = alone.init(jax.random.key(5), own.loader.gather(own.loader.arrays, 0))
    tiny.assert_equal(select_run(state, 1).student, expected.student)
    step, step_alone = jax.jit(kd.step), jax.jit(alone.step)
    for number in range(steps):
        state, found = step(state, loader.gather(loader.arrays, number))
        expected, numbers = step_alone(expected, own.loader.gather(own.loader.arrays, number))
        for name, (total, count) in numbers.items():
            assert found[name].count[1] == count, name
            np.testing.assert_allclose(found[name].sum[1], total, rtol=1e-3, err_msg=name)
    assert float(numbers["loss"].sum) != pytest.approx(float(found["loss"].sum[0]), rel=1e-2)
    tiny.assert_close(select_run(state, 1).student, expected.student, rtol=1e-3, atol=1e-4)
    tiny.assert_close(select_run(state, 1).objective, expected.objective, rtol=1e-3, atol=1e-4)


def test_every_seed_has_its_own_order_and_views(place):
    train = cells.training_set(place)[0]
    loader = inputs.Seeds([data.Resident(train, BATCH, 0)], [4, 9])
    gather = jax.jit(loader.gather)
    seen = jax.vmap(lambda seed, batch: cells.views(seed, place)(batch))
    for step in (0, 2, 4):
        batch = gather(loader.arrays, step)
        views = seen(np.array([4, 9]), batch)
        for i, seed in enumerate((4, 9)):
            alone = data.Resident(train, BATCH, seed)
            expected = alone.gather(alone.arrays, step)
            tiny.assert_equal({name: value[i] for name, value in batch.items()}, dict(expected))
            np.testing.assert_array_equal(views["image"][i], cells.views(seed, place)(expected)["image"])
    assert not np.array_equal(batch["index"][0], batch["index"][1])


def test_a_wrapped_input_gets_the_seeds_too(place):
    """As one with cached outputs, whose ``gather`` takes the options of the input that it wraps."""
    inner = data.Resident(cells.training_set(place)[0], BATCH, 0)
    wrapped = types.SimpleNamespace(
        arrays=inner.arrays,
        batch_size=inner.batch_size,
        steps_per_epoch=inner.steps_per_epoch,
        gather=lambda arrays, step, **options: inner.gather(arrays, step, **options),
    )
    both = [inputs.Seeds([one], [4, 9]) for one in (inner, wrapped)]
    tiny.assert_equal(*(dict(one.gather(one.arrays, 1)) for one in both))


def test_views_are_shared_where_outputs_are_cached(tmp_path, teacher_file):
    cached = at(tmp_path, teacher_file, cached=True)
    assert cells.views(4, cached) is cells.views(9, cached) is teachers.shared_views(PROBLEM)


def test_cells_that_others_are_at_work_on_are_left_to_them(place, monkeypatch):
    ran, finished = [], []
    monkeypatch.setattr(cells, "run", lambda pending, seeds, place: ran.append((pending, seeds)) or [])
    wanted = [*of(KD, [0, 1, 2]), *of(FT, [0])]
    with files.claim(place.directory(wanted[1])) as ours:
        assert ours
        assert cells.run_free(wanted, place, lambda: finished.append(len(ran)), vmapped=True) == 1
    assert ran == [([wanted[0], wanted[2]], [0, 2]), ([wanted[3]], [0])]
    assert finished == [1, 2]
    with files.claim(place.directory(wanted[1])) as ours:  # nothing is held any more
        assert ours


@pytest.mark.parametrize(
    ("begun", "finished", "wanted", "expected"),
    [
        ([], [], [2, 0, 1], [[0, 1, 2]]),
        (["seeds-0-1-2"], [], [0, 1, 2], [[0, 1, 2]]),
        (["seeds-0-1-2"], [0], [1, 2], [[0, 1, 2]]),  # killed when the first was kept
        (["seeds-0-1-2"], [], [1, 2], [[1, 2]]),  # nobody has taken the first
        (["seeds-1-2"], [], [0, 1, 2], [[1, 2], [0]]),
        (["seed1"], [], [0, 1, 2], [[1], [0, 2]]),  # was begun alone
        (["seeds-10-11", "seeds-0-1"], [], [0, 1, 10, 11], [[0, 1], [10, 11]]),
        (["seeds-0-1"], [], [], []),
    ],
)
def test_what_was_interrupted_goes_on_as_it_was(begun, finished, wanted, expected, place):
    folder = place.directory(KD).parent
    for name in begun:
        (folder / name / "checkpoints").mkdir(parents=True)
    for cell in of(KD, finished):
        place.directory(cell).mkdir(parents=True)
        place.file(cell).write_text("{}")
    found = cells.trainings(of(KD, wanted), place)
    assert sorted(found) == sorted(expected)


def test_a_seed_that_is_left_over_is_trained_without_a_sweep(place, monkeypatch):
    directories = []

    def stop(*arguments, directory, **options):
        directories.append(directory)
        raise Killed

    monkeypatch.setattr(training, "run", stop)
    monkeypatch.setattr(jaxkd.distillers, "sweep", lambda *_, **__: pytest.fail("one seed needs no sweep"))
    with pytest.raises(Killed):
        cells.run(of(KD, [3]), [3], place)
    assert directories == [place.directory(KD._replace(seed=3))]


@pytest.mark.parametrize("vmapped", [False, True])
def test_the_command_line_chooses_seeds_as_one_program(vmapped, tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(cells, "run_free", lambda *_, vmapped: chosen.append(vmapped) or 0)
    monkeypatch.setattr(Place, "teacher", lambda self, name: None)
    monkeypatch.setattr(command, "remember_programs", lambda path: None)
    monkeypatch.setattr(main, "write_report", lambda place: report.collect([], {}))
    options = ["--data-dir", str(tmp_path), "--out", str(tmp_path / "out"), "--preset", "reduced"]
    assert main.cli([*options, "--vmapped"] if vmapped else options) == 0
    assert chosen == [vmapped]


def test_the_rows_of_a_member():
    first = {"step": 1, "train/loss[seed=1]": 2.0, "train/loss[seed=11]": 3.0}
    history = [first, {"step": 2, "test/accuracy[seed=1]": 0.5}]
    assert training.of_seed(history, 0) == ({"step": 1, "train/loss": 2.0}, {"step": 2, "test/accuracy": 0.5})
    assert training.curve(training.of_seed(history, 1)) == {}


def test_doctests():
    found = doctest.testmod(cells)
    assert found.failed == 0 and found.attempted > 0
