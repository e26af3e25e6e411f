"""Runs on buckets of lengths: resumed where a batch has another shape, with their tokens per second."""

import itertools

import jax
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd.data import text
from jaxkd.metrics import pack
from jaxkd.training import fit
from jaxkd.training._cadence import Cadence
from jaxkd.training._clock import Clock
from jaxkd.training._logs import RowAccumulator
from jaxkd.types import Mean

BYTES = text.ByteTokenizer()


def buckets(seed):
    texts = ["ab" * i for i in (1, 2, 3, 7, 8, 9, 1, 6, 2, 7)]
    given = text.sentences(texts, BYTES)
    given["label"] = np.roll(given["tokens"], -1, axis=1)
    return text.Buckets(given, 4, seed=seed, lengths=(8, 20))


@pytest.mark.slow
def test_a_run_resumes_where_a_batch_has_another_length(tmp_path):
    model = jaxkd.adapters.plain(
        lambda key, x: 0.1 * jax.random.normal(key, (259, 259)), lambda w, x: w[x], inputs="tokens"
    )
    objective = jaxkd.term(jaxkd.losses.cross_entropy, "student/logits", "batch/label")
    kd = jaxkd.distill(
        model, jaxkd.teachers.none(), objective, optimizer=optax.sgd(0.5), train_metrics=jaxkd.metrics.tokens
    )
    steps = buckets(0).steps_per_epoch
    # In the one run a process starts with a short batch and the next one with a long batch; in the other, conversely.
    for length, other in ((8, 20), (20, 8)):
        seed, step = next(
            (seed, step)
            for seed, step in itertools.product(range(99), range(1, steps))
            if [buckets(seed).batch(i)["tokens"].shape[1] for i in (0, step)] == [length, other]
        )
        settings = {"key": jax.random.key(0), "log_every": 1, "progress": False}
        stored = {**settings, "directory": tmp_path / str(length)}
        whole = fit(kd, buckets(seed), steps=steps, **settings)
        fit(kd, buckets(seed), steps=step, **stored)
        resumed = fit(kd, buckets(seed), steps=steps, **stored)
        jax.tree.map(np.testing.assert_array_equal, resumed.state.student, whole.state.student)
        assert len(resumed.history) == steps and resumed.history[-1]["tokens_per_second"] > 0
        with pytest.raises(ValueError, match="data"):
            fit(kd, buckets(seed + 1), steps=steps, **stored)


def test_rows_have_the_tokens_per_second():
    times = iter([0.0, 1.0, 2.0])
    rows = RowAccumulator(Cadence(steps=2, log_every=2), 2, clock=Clock(batch_size=8, now=lambda: next(times)))
    for step, tokens in enumerate((24.0, 40.0)):
        rows.add(step, pack({"tokens_per_example": Mean(tokens, 8.0)}), 1)
    (row,) = rows.complete()
    assert row["examples_per_second"] == 8 and row["tokens_per_second"] == 32


def test_speed_of_a_row_is_that_of_all_its_steps():
    """The host may learn late of a dispatch, together with the next one, which then seems to take no time."""
    times = iter([0.0, 9.0, 13.0, 13.001])
    rows = RowAccumulator(Cadence(steps=3, log_every=3), 3, clock=Clock(batch_size=8, now=lambda: next(times)))
    for step in range(3):
        rows.add(step, pack({"loss": Mean(1.0, 1.0)}), 1)
    (row,) = rows.complete()
    assert row["examples_per_second"] == pytest.approx(2 * 8 / 4.001, rel=1e-3)
