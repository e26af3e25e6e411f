"""The study of all losses: its rows, the choice on validation images, its cells, report and figure."""

import doctest
import json

import jax
import numpy as np
import pytest

from experiments.classification.main import cli
from experiments.classification.study import cells, choice, cifar100, digits, figure, main, networks, report, table
from experiments.kit.recipe import Protocol
from jaxkd import data
from tests.experiments import cifar100_tiny

GROUPS = ("response", "features", "relations")


class Made:
    """A problem whose accuracies are made up: the best value on validation images is the worst on test images."""

    def __init__(self):
        self.asked = []

    def train(self, row, values, seeds):
        self.asked.append(("train", tuple(values), tuple(seeds)))
        accuracy = np.array(
            [
                0.5 + 0.1 * (value == row.values[3]) + 0.001 * (seed % 2)
                for value, seed in zip(values, seeds, strict=True)
            ]
        )
        return {"accuracy": accuracy, "curve": accuracy[None], "params": {"value": np.asarray(values)}}

    def measure(self, params):
        self.asked.append(("measure", float(params["value"])))
        return dict.fromkeys(report.MEASURES, 1.0 - 0.001 * abs(float(params["value"])))

    def flops(self, row):
        return {"cached": 100.0, "live": 200.0}

    def references(self):
        return {"teacher": {"accuracy": 0.97}}


class Silent:
    def print(self, *texts, **options):
        pass


def run(folder, names=("student", "kd")):
    made = Made()
    cells.Cells(main.ROWS, folder, lambda: made, Silent()).run(names, range(3), lambda: None)
    return made


def test_every_row_has_a_grid_with_its_published_value():
    for name, row in main.ROWS.items():
        assert len(row.values) == 5 and row.published in row.values and list(row.values) == sorted(row.values), name
        assert row.group in GROUPS and row.source, name
    assert len({row.title for row in main.ROWS.values()}) == len(main.ROWS)


def test_the_best_value_on_validation_images_is_chosen():
    values = [0.1, 1.0, 10.0]
    assert choice.choose(values, [[0.8, 0.9], [0.9, 0.9], [0.7, 0.9]], 10.0) == 1.0
    assert choice.choose(values, [[0.9, 0.9], [0.8, 0.9], [0.9, 0.9]], 3.0) == 10.0  # equal: the nearest by the ratio
    assert choice.choose(values, [[np.nan, 1.0], [0.1, 0.1], [0.2, 0.1]], 1.0) == 10.0


def test_the_choice_never_reads_test_images_and_has_seeds_of_its_own(tmp_path):
    row, made = main.ROWS["kd"], run(tmp_path, ["kd"])
    found = cells.read(tmp_path, ["kd"])["kd"]
    # Its test accuracy is the lower one of the two, and it is chosen nevertheless.
    assert found["choice"]["chosen"] == found["test"]["chosen"] == row.values[3]
    first, second, *measured = made.asked
    assert first == ("train", tuple(np.repeat(row.values, 2)), cells.CHOICE_SEEDS * 5)
    assert second == ("train", (row.published,) * 3 + (row.values[3],) * 3, (0, 1, 2) * 2)
    assert {kind for kind, *_ in measured} == {"measure"} and len(measured) == 6
    assert not set(cells.CHOICE_SEEDS) & {0, 1, 2}


def test_finished_cells_are_not_run_again(tmp_path):
    run(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    assert run(tmp_path).asked == []
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before
    main.write(tmp_path, {"seeds": 3})
    (tmp_path / "cells" / "kd" / "test.json").unlink()
    asked = run(tmp_path).asked
    assert [kind for kind, *_ in asked].count("train") == 1 and asked[0][2] == (0, 1, 2) * 2


def test_gains_are_paired_with_the_student_alone_of_the_same_column(tmp_path):
    run(tmp_path)
    found = report.numbers(main.ROWS, cells.read(tmp_path, list(main.ROWS)), {})
    kd, alone = found["rows"]["kd"], found["rows"]["student"]
    for kind in report.KINDS:
        difference = kd["measures"][kind]["accuracy"]["mean"] - alone["measures"][kind]["accuracy"]["mean"]
        np.testing.assert_allclose(kd["gain"][kind]["mean"], difference, atol=1e-12)
    assert alone["gain"] == {} and kd["cost"] == {"cached": 1.0, "live": 2.0}
    text = report.markdown({**found, "config": {"seeds": 3}}, "Title")
    assert text.startswith("# Title\n") and "| KD | 0.9 |" in text


def test_labels_of_the_figure_lie_apart():
    places = np.sort(np.random.default_rng(0).normal(size=30))
    moved = figure.spaced(places.tolist(), 0.3)
    assert np.diff(moved).min() >= 0.3 - 1e-9
    np.testing.assert_allclose(np.mean(moved), np.mean(places))
    assert figure.spaced([0.0, 1.0, 5.0], 0.5) == [0.0, 1.0, 5.0]


@pytest.mark.parametrize("module", [choice, figure, report, table])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(networks, "TEACHER_STEPS", 4)
        return digits.Digits(tmp_path_factory.mktemp("study"), digits.Sizes(steps=10))


@pytest.mark.slow
@pytest.mark.parametrize("name", main.ROWS)
def test_a_row_builds(opened, name):
    row = main.ROWS[name]
    kinds = {"label": "int32", "guess": "int32", "index": "int32", "epoch": "int32", "labeled": bool}
    batch = {entry: jax.ShapeDtypeStruct((8,), kind) for entry, kind in kinds.items()}
    batch["image"] = jax.ShapeDtypeStruct((8, 8, 8, 1), "float32")

    def step(value, batch):
        kd = opened.distiller(row, value)
        return kd.step(kd.init(jax.random.key(0), batch), batch)[1]

    assert "loss" in jax.eval_shape(step, jax.ShapeDtypeStruct((), "float32"), batch)


@pytest.mark.slow
def test_labeled_images_are_mixed_with_each_other_alone():
    batch = {"image": np.zeros((8, 8, 8, 1), np.float32), "label": np.arange(8, dtype=np.int32)}
    batch |= {"index": np.arange(8, dtype=np.int32), "epoch": np.zeros(8, np.int32)}
    batch["image"] += np.arange(8, dtype=np.float32)[:, None, None, None]
    found = digits.mixed(batch, kind="mixup", value=1.0, seed=0)
    soft = np.asarray(found["soft_label"])
    np.testing.assert_allclose(soft.sum(-1), [1, 1, 1, 1, 0, 0, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found["image"][:4, 0, 0, 0], soft[:4] @ np.arange(10), atol=1e-5)
    np.testing.assert_array_equal(found["image"][4:], batch["image"][4:])


@pytest.mark.slow
def test_a_tiny_run_reads_test_images_last_and_resumes(monkeypatch, tmp_path):
    monkeypatch.setattr(networks, "TEACHER_STEPS", 4)
    arguments = ["study", "--methods", "at", "ab_first", "--steps", "10", "--seeds", "2", "--out", str(tmp_path)]
    assert cli(arguments) == 0
    folder = tmp_path / "classification" / "study"
    made = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".md", ".png", ".json")}
    assert {"report.md", "results.json", "gain-and-cost.png"} <= set(made)
    assert cli(arguments) == 0
    assert {name: (folder / name).read_bytes() for name in made} == made
    results = json.loads(made["results.json"])
    assert list(results["rows"]) == ["student", "at", "ab_first"]
    read, load = [], data.load
    monkeypatch.setattr(data, "load", lambda name, split, *more: read.append(split) or load(name, split, *more))
    work = digits.Digits(tmp_path / "again", digits.Sizes(steps=10))
    found = work.train(main.ROWS["at"], [10.0, 100.0], [1000, 1000])
    assert read == ["train", "validation"] and found["curve"].shape == (10, 2)


def test_values_multiply_the_published_weights_but_that_of_the_labels():
    assert cifar100.weighted("kd", 10.0) == {"ce": 0.1, "kd": 9.0}
    assert cifar100.weighted("rkd", 0.1) == pytest.approx({"distance": 2.5, "angle": 5.0})
    assert cifar100.weighted("review", 2.0) == {"review": 2.0}
    assert {name: len(row.values) for name, row in cifar100.rows().items() if len(row.values) != 5} == {
        "student": 1,
        "fsp": 1,
    }


@pytest.mark.slow
def test_cifar100_trains_each_value_once(monkeypatch, tmp_path):
    monkeypatch.setattr(cifar100, "PROBLEM", cifar100_tiny.PROBLEM._replace(load=lambda _, split: tiny_images(split)))
    protocol = Protocol(epochs=1, teacher_epochs=1, holdout=100, batch_size=50)
    work, row = cifar100.Cifar100(tmp_path, None, protocol), cifar100.rows()["at"]
    found = work.train(row, [1.0, 10.0], [0, 0])
    assert found["accuracy"].shape == (2,) and found["curve"].shape == (1, 2)
    monkeypatch.setattr(cifar100.training, "by_epoch", lambda *more, **options: pytest.fail("it is trained"))
    np.testing.assert_array_equal(work.train(row, [10.0], [0])["accuracy"], found["accuracy"][1:])
    measured = work.measure(jax.tree.map(lambda x: x[0], found["params"]))
    assert set(report.MEASURES) <= set(measured) and 0 <= measured["cka"] <= 1
    flops = work.flops(row)
    assert work.flops(cifar100.rows()["student"])["cached"] < flops["cached"] < flops["live"]


def tiny_images(split):
    return cifar100_tiny.images(200 if split == "train" else 100, seed=len(split))
