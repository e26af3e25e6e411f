"""The class of a sum: every method builds, and a text's embeddings belong to its string."""

import jax
import numpy as np
import pytest

from experiments.kit.tasks import minilm
from experiments.speech import intent, recognizers
from tests.experiments.language.tiny import traced
from tests.experiments.speech import tiny

WIDTH = 6


@pytest.fixture
def work(monkeypatch, tmp_path):
    sizes = {"LABELED": 2, "OTHERS": 3, "FEW": 6, "TRAIN": 9, "TEST": 6, "HELD_OUT": 6}
    tiny.use(monkeypatch, intent, **sizes)
    monkeypatch.setattr(intent, "STUDENT", recognizers.lstm(4, 1, classes=5, outputs=intent._outputs))
    monkeypatch.setattr(minilm, "folder", lambda config: "MiniLM")
    monkeypatch.setattr(minilm, "load", lambda place: ({}, None, None))
    monkeypatch.setattr(minilm, "rows", lambda texts, tokenizer, length: texts)
    monkeypatch.setattr(minilm, "embeddings", lambda place, texts, keep: _embedded(texts))

    class Reader:
        """In the place of an MLP."""

        def __init__(self, *arguments, **options):
            pass

        def fit(self, embedded, kinds):
            self.kinds = np.asarray(kinds)
            return self

        def predict_proba(self, embedded):
            return np.eye(5)[self.kinds]

    monkeypatch.setattr(intent, "MLPClassifier", Reader)
    return intent.Intent(tiny.CONFIG, tmp_path)


def _embedded(texts):
    return np.stack([np.full(WIDTH, number, np.float32) for number in range(len(texts))])


@pytest.mark.slow
@pytest.mark.parametrize("method", intent.METHODS)
def test_a_method_builds(work, method):
    state, found = traced(work.training(method, 0, 8))
    assert "classifier" in state.student.params and "loss" in found
    assert ("kd" in found) == (method in ("logits", "two_stages"))
    assert any(name.startswith("embedding") for name in found) == (method in ("embedding", "two_stages"))


def test_the_text_of_a_string_is_read(work):
    arrays = work._sets["test"]
    found = work._read(arrays)
    assert len(work._rows) == 11_110
    texts = list(work._rows)
    for spoken, row in zip(recognizers.spoken(arrays), found["teacher_embedding"], strict=True):
        assert texts[int(row[0])] == spoken
    # The reader in place of the MLP knows the class of every text.
    classes = intent.sums(arrays["label"], arrays["label_mask"])
    np.testing.assert_array_equal(found["teacher_logits"].argmax(axis=-1), classes)
    assert work.references()["MiniLM + MLP, reads the transcript"]["test_accuracy"] == 1


def test_classes_of_sums():
    labels = np.array([[1, 7, 0], [8, 1, 1], [10, 10, 3], [10, 10, 2], [8, 8, 0]])  # sums 6, 7, 20, 19, 14
    mask = labels > 0
    assert intent.sums(labels, mask).tolist() == [0, 1, 4, 3, 2]


@pytest.mark.slow
def test_each_string_of_a_batch_has_its_own_text(work, monkeypatch):
    seen = {}
    monkeypatch.setattr(recognizers, "distill", lambda *arguments: seen.update(prepare=arguments[4]))
    batch = next(iter(work.training("logits", 3, 8).inputs.batches()))
    found = seen["prepare"](batch)
    np.testing.assert_array_equal(found["teacher_embedding"], work._read(batch)["teacher_embedding"])
    np.testing.assert_array_equal(found["words"], batch["label"])
    assert found["labeled"].tolist() == [True] * 2 + [False] * 3


@pytest.mark.slow
def test_measures(work):
    training = work.training("student", 0, 8)
    state = training.kd.init(jax.random.key(0), next(iter(training.inputs.batches())))
    assert set(intent.TASK.measures) <= work.measure("student", 0, state).keys()
    assert len(work.samples("student", state)) == 6
