"""Rows of a table: what is trained, how long a baseline of equal cost is, and that nothing is trained twice."""

import io
import json

import jax.numpy as jnp
import optax
import pytest
from rich.console import Console

import jaxkd
from experiments.kit.rows.seeds import Part, Training
from experiments.kit.rows.table import Baseline, Rows
from jaxkd import data
from jaxkd.types import Variables

IMAGES = data.from_arrays(jnp.ones((8, 4)), jnp.arange(8) % 2, num_classes=2, name="tiny")
WIDE, NARROW = 64, 2  # a step of one costs about as much as so many steps of the other


def training(width, steps, needs=()):
    """A linear model behind a dense layer of a width, trained on labels."""

    def init(key, x):
        return {"first": jnp.ones((4, width)), "last": jnp.ones((width, 2))}

    model = jaxkd.adapters.plain(init, lambda w, x: x @ w["first"] @ w["last"])
    ce = jaxkd.term(jaxkd.losses.cross_entropy, "student/logits", "batch/label")
    kd = jaxkd.distill(model, jaxkd.teachers.none(), ce, optimizer=optax.sgd(0.1))
    return Training(
        lambda own: kd,
        steps,
        model,
        lambda images, seed: data.Resident(images, 4, seed),
        [Part(lambda own: kd, steps)],
        lambda batch: batch,
        needs=needs,
    )


class Table(Rows):
    """Notes what is trained, in the place of trainings."""

    def __init__(self, folder):
        super().__init__(folder, IMAGES, 2, Console(file=io.StringIO()))
        self.ran = []

    def run(self, name, training, own):
        self.ran.append((name, training.steps, [sorted(one) for one in own]))
        return {"accuracy": [0.5, 0.75], "curve": [{"step": [1]}] * 2, "variables": [Variables({})] * 2}

    def network(self, name):
        self.ran.append((name, None, []))
        return {"accuracy": [1.0, 1.0], "variables": [Variables({"w": jnp.ones(3)}), Variables({"w": jnp.zeros(3)})]}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return Table(tmp_path_factory.mktemp("rows"))


def test_a_baseline_is_trained_for_as_many_flops_and_once(table):
    baselines = {"alone": Baseline("alone", lambda steps: training(NARROW, steps))}
    wide = training(WIDE, 20, needs=("teacher",))
    row = table.row("wide", wide, baselines, 20)
    assert (row["steps"], row["all_steps"], row["examples"], row["accuracy"]) == (20, 20, 80, [0.5, 0.75])
    assert row["flops"] == pytest.approx(wide.flops({}, table._batch(wide)))
    alone, equal = row["alone"], row["alone"]["steps"]
    assert equal > 20 and equal * alone["flops_per_step"] == pytest.approx(row["flops"], rel=0.05)
    names = [("teacher", None, []), ("wide", 20, [["teacher"]] * 2), (f"alone-{equal}", equal, [["teacher"]] * 2)]
    assert table.ran == names
    assert json.loads(table.path("teacher", "networks").read_text()) == {"accuracy": [1.0, 1.0], "parameters": 3}
    assert table.row("wide", wide, baselines, 20) == row and table.ran == names
    assert table.read("trainings").keys() == {"wide", f"alone-{equal}"}


def test_each_seed_has_its_own_networks(table):
    one, two = table.own(training(NARROW, 1, needs=("teacher",)))
    assert float(one["teacher"].params["w"].sum()) == 3 and float(two["teacher"].params["w"].sum()) == 0


def test_the_seconds_of_a_step_are_measured_beside_another(table):
    found = table.time(training(NARROW, 5), training(NARROW, 5))
    assert found["seconds_per_step"] > 0 and 0.01 < found["over_alone"] < 100
