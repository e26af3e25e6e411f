"""Letters to phonemes: every method builds, and sequence-level students learn what the teacher writes."""

import jax
import numpy as np
import pytest

from experiments.language import g2p
from jaxkd import data
from tests.experiments.language import tiny

LINES = [
    "cab\tK AE1 B",
    "baa\tB AA2",
    "abba\tAE1 B AH0",
    "c\tS IY1",
    "bee\tB IY1",
    "ace\tEY1 S",
    "dab\tD AE1 B",
    "egg\tEH1 G",
]


@pytest.fixture
def work(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "source", lambda name, split, data_dir: [{"text": "\n".join(LINES)}])
    sizes = g2p.sizes
    monkeypatch.setattr(g2p, "sizes", lambda vocabularies, width, layers, heads: sizes(vocabularies, 8, 1, 2))
    for name, value in {"BATCH": 4, "LETTERS": 8, "PHONEMES": 5, "TEST_LETTERS": 8, "TEST_PHONEMES": 5}.items():
        monkeypatch.setattr(g2p, name, value)
    opened = g2p.G2p(tiny.CONFIG, tmp_path)
    opened._taught = opened._teacher.init(jax.random.key(3), {})  # as if it had been trained
    return opened


@pytest.mark.parametrize(
    "method",
    [name if name in ("word", "sequence_beam") else pytest.param(name, marks=pytest.mark.slow) for name in g2p.METHODS],
)
def test_a_method_builds(work, method):
    state, metrics = tiny.traced(work.training(method, 0, 8))
    assert ("decoded" in metrics) == method.startswith(("sequence", "both"))
    assert state.student.params["decoder"]


@pytest.mark.slow
def test_a_sequence_level_student_sees_what_the_teacher_writes(work):
    training = work.training("sequence", 0, 8)
    state, _ = tiny.trained(training)
    bank = jax.device_get(state.opt_state["sequences"])
    rows = np.flatnonzero(bank["made"])
    assert len(rows) == 4
    words = {name: work._sets["train"][name][rows] for name in ("source", "source_mask")}
    expected = work._written(work._large, 5)(work._taught, words)
    np.testing.assert_array_equal(bank["entries"]["label"][rows], expected.tokens)
    np.testing.assert_array_equal(bank["entries"]["mask"][rows], expected.mask)
    bos = work._phonemes.specials["bos"]
    np.testing.assert_array_equal(bank["entries"]["tokens"][rows, 0], bos)
    np.testing.assert_array_equal(bank["entries"]["tokens"][rows, 1:], expected.tokens[:, :-1])


def test_phonemes_have_no_stress_and_a_perfect_writer_no_errors(work, monkeypatch):
    test = work._sets["test"]
    assert [work._phonemes.decode(row[mask]) for row, mask in zip(test["label"], test["mask"], strict=True)][:2] == [
        "K AE B",
        "B AA",
    ]
    exact = (test["label"], test["mask"] & (test["label"] < len(g2p.SYMBOLS)))
    monkeypatch.setattr(work, "_read", lambda config, variables, rows: exact)
    monkeypatch.setattr(g2p.lm, "measure", lambda *arguments, **options: {})
    assert work.measure("student", 0, _state(work)) == {
        "error_rate": 0.0,
        "word_error_rate": 0.0,
    }
    # One of the 22 phonemes is wrong.
    wrong = exact[0].copy()
    wrong[0, 0] += 1
    monkeypatch.setattr(work, "_read", lambda config, variables, rows: (wrong, exact[1]))
    found = work.measure("student", 0, _state(work))
    np.testing.assert_allclose([found["error_rate"], found["word_error_rate"]], [1 / exact[1].sum(), 1 / 8])


def test_a_student_writes_words_to_read(work):
    lines = work.samples("student", _state(work))
    assert [line.partition(":")[0] for line in lines] == [line.partition("\t")[0] for line in LINES]


def _state(work):
    return work.training("student", 0, 8).kd.init(jax.random.key(0), next(iter(work._train(0).batches())))
