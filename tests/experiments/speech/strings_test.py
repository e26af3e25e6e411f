"""Strings of digits: every method builds, and what it learns from is the teacher's."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.speech import alignment, recognizers, sounds, strings
from jaxkd import metrics, weights
from jaxkd.types import Context
from tests.experiments.language.tiny import traced, trained
from tests.experiments.speech import tiny


@pytest.fixture
def work(monkeypatch, tmp_path):
    tiny.use(monkeypatch, strings, TRAIN=8, VALIDATION=6, TEST=6, HELD_OUT=6, BEAMS=3, N_BEST=2, READ=3)
    for models in (strings.TEACHERS, strings.STUDENTS):
        for name in models:
            made = recognizers.lstm(4, 1) if name == "lstm" else recognizers.cnn(4, 1, kernel=3)
            monkeypatch.setitem(models, name, made)
    opened = strings.Strings(tiny.CONFIG, tmp_path)
    batch = {name: opened._sets["test"][name] for name in ("features", "frame_mask")}
    drawn = {name: model.init(jax.random.key(3), batch) for name, model in strings.TEACHERS.items()}
    monkeypatch.setattr(opened, "_taught", drawn.get)  # as if they had been trained
    return opened


QUICK = ("posteriors",)


@pytest.mark.parametrize(
    "method", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in strings.METHODS]
)
def test_a_method_builds(work, method):
    training = work.training(method, 0, 8)
    state, found = traced(training)
    assert {"head", "layers"} <= set(state.student.params) and "loss" in found
    assert ("kd" in found) == (strings.PARTS[method][1] != "" or "n_best" in method)
    assert jax.eval_shape(training.kd.evaluate, state, next(iter(training.splits["validation"]))).keys() == {
        "exact",
        "ctc",
    }


@pytest.mark.slow
def test_hypotheses_are_those_of_each_string(work):
    found = work._hypotheses
    assert found["hypotheses"].shape == (8, 2, 5) and (np.diff(found["log_posteriors"]) <= 0).all()
    clean = work._memory("train", 8, prepare=sounds.features)
    one = {name: value[5:6] for name, value in clean.items()}
    again = recognizers.hypotheses(strings.TEACHERS["lstm"], work._taught("lstm"), one, 3, 2)
    np.testing.assert_array_equal(again["hypotheses"][0], found["hypotheses"][5])
    work.__dict__.pop("_hypotheses")
    np.testing.assert_array_equal(work._hypotheses["hypotheses"], found["hypotheses"])  # from the file


@pytest.mark.slow
def test_no_recording_of_the_held_out_speaker_is_trained_on(work):
    speakers = {split: set(np.unique(arrays["speaker"])) for split, arrays in work._recordings.items()}
    assert speakers.pop("held_out") == {5} and set(map(frozenset, speakers.values())) == {frozenset(range(5))}
    assert work._recordings["train"]["label"].min() == 1
    audio, length = (work._recordings["test"][name] for name in ("audio", "audio_length"))
    power = np.sum(np.square(audio), axis=1) / length
    np.testing.assert_allclose(np.sqrt(power), sounds.LEVEL, rtol=1e-4)


def alignments(labels, frames):
    """Returns all paths of classes that read as the labels."""
    for path in itertools.product(range(3), repeat=frames):
        if [label for label, _ in itertools.groupby(path) if label] == list(labels):
            yield path


def test_posteriors_given_the_transcript_by_enumeration():
    logits = np.random.default_rng(0).normal(size=(2, 4, 3))
    log_p = logits - np.log(np.sum(np.exp(logits), axis=-1, keepdims=True))
    expected = np.zeros((2, 4, 3))
    for row, (labels, frames) in enumerate((([1, 1], 4), ([2], 3))):
        for path in alignments(labels, frames):
            expected[row, np.arange(frames), path] += np.exp(log_p[row, np.arange(frames), path].sum())
        expected[row, :frames] /= expected[row, :frames].sum(axis=-1, keepdims=True)
    label, label_mask = jnp.array([[1, 1], [2, 0]]), jnp.array([[True, True], [True, False]])
    frame_mask = jnp.arange(4)[None] < jnp.array([[4], [3]])
    arguments = label, label_mask, frame_mask
    found = jax.jit(recognizers.occupancy)(jnp.asarray(logits, jnp.float32), *arguments)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    student = np.random.default_rng(1).normal(size=(2, 4, 3))
    log_q = student - np.log(np.sum(np.exp(student), axis=-1, keepdims=True))
    value = jax.jit(recognizers.sequence_frames)(
        jnp.asarray(student, jnp.float32), jnp.asarray(logits, jnp.float32), *arguments
    )
    np.testing.assert_allclose(value, -np.sum(expected * log_q, axis=(1, 2)), rtol=1e-4)


def test_frames_are_summed_without_padding_or_blanks():
    teacher = jnp.log(jnp.array([[[0.8, 0.2], [0.2, 0.8], [0.2, 0.8]]]))
    student, mask = jnp.zeros((1, 3, 2)), jnp.array([[True, True, False]])
    each = 0.8 * np.log(1.6) + 0.2 * np.log(0.4)
    np.testing.assert_allclose(recognizers.frames(student, teacher, mask, blank_weight=1.0), 2 * each, rtol=1e-5)
    np.testing.assert_allclose(recognizers.frames(student, teacher, mask, blank_weight=0.0), each, rtol=1e-5)


def test_exact_strings_and_error_rates():
    logits = 9 * jax.nn.one_hot(jnp.array([[1, 1, 0, 2], [1, 0, 1, 3]]), 4)
    mask = jnp.array([[True] * 4, [True, True, True, False]])
    batch = {"label": jnp.array([[1, 2, 0], [1, 3, 0]]), "label_mask": jnp.array([[True, True, False]] * 2)}
    found = jax.jit(recognizers.recognized)(Context({"logits": logits, "mask": mask}, {}, batch, 0))
    assert metrics.compute(found)["exact"] == 0.5
    assert recognizers.error_rate(["one two", "three"], ["one", "three four"]) == pytest.approx(2 / 3)
    assert recognizers.shares(["one two", "three"], ["one", "three"]) == 0.5
    assert sounds.words(np.array([4, 2, 0]), np.array([True, True, False])) == "three one"


@pytest.mark.slow
def test_measures_samples_and_figure(work):
    training = work.training("student", 0, 8)
    state = training.kd.init(jax.random.key(0), next(iter(training.inputs.batches())))
    found = work.measure("student", 0, state)
    assert set(strings.TASK.measures) <= found.keys() and 0 <= found["test_exact"] <= 1
    lines = work.samples("student", state)
    assert [line.partition(":")[0] for line in lines] == recognizers.spoken(work._sets["test"])[:3]
    assert set(strings.TASK.measures) <= work.references()["LSTM, teacher"].keys()
    shown = {"alignments": work.shown("student", state)}
    rows = {"student": {"title": "alone", "shown": shown}, "other": {"title": "other", "shown": {}}}
    for drawn in (rows, {}):
        assert alignment.draw({"rows": drawn}).startswith(b"\x89PNG")


@pytest.mark.slow
def test_an_exported_student_serves_a_recorded_string(work, tmp_path):
    training = work.training("frames", 0, 8)
    state, _ = trained(training, 2)
    model, path = strings.STUDENTS["lstm"], tmp_path / "student.jax"
    heard = {name: value[:1] for name, value in work._loader(0).take([3]).items() if name in ("audio", "audio_length")}
    weights.save_program(path, model, state, heard, preprocess=sounds.features, output_names=("logits", "mask"))
    served = weights.load_program(path).call(heard)
    expected, _ = model.apply(state.student, sounds.features(heard), key=None, train=False)
    np.testing.assert_allclose(served["logits"], expected["logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(served["mask"], expected["mask"])
