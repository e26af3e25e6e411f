"""Sentence embeddings: every method builds; pairs and single sentences have one embedding."""

import contextlib

import jax
import numpy as np
import pytest

from experiments.language import stsb
from tests.experiments.language import tiny

encoder = tiny.encoder


@pytest.fixture
def work(monkeypatch, tmp_path, encoder):
    def rows(name, rng):
        if name == "multi30k":
            return {"en": tiny.sentence(rng)}
        one, two = tiny.sentence(rng), tiny.sentence(rng)
        return {"sentence1": one, "sentence2": two, "similarity_score": float(rng.uniform(0, 5))}

    tiny.sources(monkeypatch, rows)
    monkeypatch.setattr(stsb, "LENGTH", 8)
    monkeypatch.setattr(stsb, "TEST_LENGTH", 10)
    monkeypatch.setattr(stsb, "BATCH", 8)
    return stsb.Stsb(tiny.CONFIG, tmp_path)


@pytest.mark.parametrize(
    "method",
    [
        name if name in ("bag_contrastive", "layers1_mse") else pytest.param(name, marks=pytest.mark.slow)
        for name in stsb.METHODS
    ],
)
def test_a_method_builds(work, method):
    state, metrics = tiny.traced(work.training(method, 0, 8))
    layers, _ = stsb.PARTS[method]
    assert "loss" in metrics
    assert len(state.student.params.get("layers", ())) == layers


def test_a_student_alone_learns_the_scores_of_pairs(work):
    training = work.training("bag", 0, 8)
    batch = next(iter(training.inputs.batches()))
    state = training.kd.init(jax.random.key(0), batch)
    found = jax.jit(training.kd.step)(state, batch)[1]["loss"]
    of_sentences = work._models(0)[0]
    flat = {name: batch[name].reshape(-1, batch[name].shape[-1]) for name in ("tokens", "token_mask")}
    embedding = np.asarray(of_sentences.apply(state.student, flat, key=None, train=False)[0]["embedding"], np.float64)
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=-1), 1, rtol=1e-5)
    cosine = np.sum(embedding[::2] * embedding[1::2], axis=-1)
    expected = np.mean((cosine - np.asarray(batch["score"])) ** 2)
    np.testing.assert_allclose(found.sum / found.count, expected, rtol=1e-5)
    measured = work.measure("bag", 0, state)
    assert -1 <= measured["spearman"] <= 1 and -1 <= measured["teacher_cosine"] <= 1


def test_the_bag_begins_with_the_words_of_the_encoder(work, encoder):
    training = work.training("bag_mse", 0, 8)
    state = training.kd.init(jax.random.key(0), next(iter(training.inputs.batches())))
    words = encoder[1].params["embed"]["words"]
    np.testing.assert_array_equal(state.student.params["words"]["embedding"], words["embedding"])


def test_sentences_are_taught_once_each(work):
    rows = [tuple(row) for row in work._sentences["tokens"].tolist()]
    assert len(set(rows)) == len(rows) == len(work._sentences["teacher_embedding"])


def drawn(monkeypatch, results):
    """Draws the figure of made-up results; returns the PNG, and what the axes hold."""
    held, figure = {}, stsb.plots.figure

    @contextlib.contextmanager
    def spy(*arguments, **options):
        with figure(*arguments, **options) as (made, axes, save):
            yield made, axes, save
            held["lines"] = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
            held["points"] = {
                bars.get_label(): [bars.lines[0].get_xydata(), bars.lines[2][0].get_segments()]
                for bars in axes.containers
            }

    monkeypatch.setattr(stsb.plots, "figure", spy)
    return stsb.by_layers(results), held


def made_up(names):
    values = {name: 0.5 + 0.01 * i for i, name in enumerate(names)}
    measures = {
        name: {"measures": {"spearman": {"mean": value, "half": 0.02, "values": [value]}}}
        for name, value in values.items()
    }
    references = {"MiniLM": {"spearman": 0.8}, "1 layer, not trained": {"spearman": 0.4}}
    return {"rows": {**measures, "student@900": measures["student"]}, "references": references}, values


def test_the_figure_has_a_line_for_each_loss_beside_the_published_curve(monkeypatch):
    results, values = made_up(stsb.METHODS)
    png, held = drawn(monkeypatch, results)
    assert png.startswith(b"\x89PNG") and len(png) > 5000
    assert set(held["points"]) == {title for title, _ in stsb.LOSSES.values()}
    points, bars = held["points"]["MSE"]
    np.testing.assert_allclose(
        points[:, 1], [100 * values[f"{name}_mse"] for name in ("bag", "layers1", "layers2", "layers3")]
    )
    np.testing.assert_allclose(np.round(points[:, 0]), [0, 1, 2, 3])
    np.testing.assert_allclose([bar[1][1] - bar[0][1] for bar in bars], 4)
    published = held["lines"]["sentence-transformers, published"]
    np.testing.assert_allclose(published, [[1, 80.9], [3, 84.4], [4, 85.2], [5, 85.4]])
    assert held["lines"]["MiniLM, the teacher"] == [[4, 80.0]]


def test_the_figure_of_unfinished_results(monkeypatch):
    results, _ = made_up(["student"])
    results["rows"]["bag"] = {"measures": {"spearman": {"mean": None, "half": None, "values": [np.nan]}}}
    png, held = drawn(monkeypatch, {**results, "references": {}})
    assert png.startswith(b"\x89PNG")
    assert [len(points) for points, _ in held["points"].values()] == [1, 0, 0, 0, 0]


@pytest.mark.slow
def test_references_are_the_teacher_untrained_layers_and_published_figures(work):
    found = work.references()
    assert found["MiniLM"]["parameters"] > 0 and -1 <= found["MiniLM"]["spearman"] <= 1
    assert {"1 layer, not trained", "3 layers, not trained"} <= set(found)
    assert found["sentence-transformers, 3 layers, published"] == {"spearman": 0.844}
