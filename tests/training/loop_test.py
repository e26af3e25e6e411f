"""The training loop: results of a run, arguments that are refused, progress."""

import io
import itertools
import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd._core.progress import show_progress
from jaxkd.metrics import pack
from jaxkd.training import Checkpoints, _logs, _run_identity, evaluate, fit
from jaxkd.training._cadence import Cadence, due, make_cadence, next_piece
from jaxkd.types import Distiller, Mean
from tests.training import toy
from tests.training.toy import (
    BATCH,
    KD,
    SETTINGS,
    STEPS,
    TRACES,
    TRAIN,
    VAL,
    Resident,
    Streaming,
    bits,
    data,
    run,
    timeless,
)

both = pytest.mark.parametrize("mode", ["resident", "streaming"])


# --- results of a run -------------------------------------------------------------------------------------------------


@both
def test_run_learns_and_logs_every_row(mode, straight):
    result, written, steps = straight[mode]
    by_step = {row["step"]: row for row in result.history}
    assert sorted(by_step) == sorted({*range(5, 36, 5), *range(6, 37, 6)})
    assert [row["step"] for row in result.history] == sorted(by_step)
    assert {"train/loss", "train/ce", "train/kd", "eval/loss", "eval/accuracy"} < set(by_step[30])
    assert "eval/loss" not in by_step[5]
    assert "train/loss" not in by_step[6]
    assert by_step[36]["eval/loss"] < by_step[6]["eval/loss"] / 2
    assert by_step[36]["train/loss"] < by_step[5]["train/loss"] / 2
    assert by_step[20]["epoch"] == 4
    assert written["metrics.jsonl"] == timeless(result.history)
    assert {STEPS, result.best.step} <= set(steps)
    assert len(steps) <= 3 + 1
    assert int(result.state.step) == STEPS


def test_rows_are_means_over_their_steps(straight):
    state, step = KD.init(jax.random.key(1), TRAIN.gather(TRAIN.arrays, 0)), jax.jit(KD.step)
    expected = []
    for number in range(STEPS):
        state, metrics = step(state, TRAIN.gather(TRAIN.arrays, number))
        expected.append(jax.device_get(metrics))
    for mode in straight:
        for row in straight[mode][0].history:
            if "train/ce" in row:
                part = expected[row["step"] - (row["step"] % 5 or 5) : row["step"]]
                for name in ("ce", "kd", "loss"):
                    mean = sum(float(m[name].sum) for m in part) / sum(float(m[name].count) for m in part)
                    assert row[f"train/{name}"] == pytest.approx(mean, rel=1e-4)


def test_resident_and_streaming_runs_are_equal(straight):
    resident, streaming = straight["resident"][0], straight["streaming"][0]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), resident.state[:4], streaming.state[:4]
    )
    assert [set(row) for row in resident.history] == [set(row) for row in streaming.history]


@both
def test_evaluation_counts_every_example_once_without_padding(mode, straight):
    state = straight["resident"][0].state
    data = VAL if mode == "resident" else Streaming(VAL)
    found = evaluate(KD, state, data)
    x, y = (np.asarray(VAL.arrays[name], np.float64) for name in ("x", "y"))
    predicted = x @ np.asarray(state.student.params["w"], np.float64) + float(state.student.params["b"])
    squared = (predicted - y) ** 2
    assert len(y) == 21
    assert VAL.steps_per_epoch * BATCH == 24
    assert found["ce"] == pytest.approx(squared.mean(), rel=1e-5)
    assert found["accuracy"] == pytest.approx((squared < 0.5).mean(), rel=1e-6)


def test_several_splits_are_reported_by_name(tmp_path):
    splits = {"val": VAL, "test": Streaming(Resident(examples=11))}
    result = run("resident", eval_data=splits, steps=6, best="test/accuracy", best_mode="max")
    assert {"val/loss", "test/loss", "test/accuracy"} < set(result.history[-1])
    assert result.best.value == max(row["test/accuracy"] for row in result.history if "test/accuracy" in row)


def test_best_state_is_that_of_the_best_evaluation(tmp_path, straight):
    def evaluated(step, metrics, state):
        seen[step] = metrics["eval/loss"], bits(state)

    for directory in (None, tmp_path):
        seen: dict = {}
        result = run("resident", directory, on_eval=evaluated, keep=1)
        assert sorted(seen) == list(range(6, 37, 6))
        best = min(seen, key=lambda step: seen[step][0])
        assert result.best == (best, seen[best][0])
        assert bits(result.best_state) == seen[best][1]
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == tuple(sorted({best, 36}))


def test_epochs_are_passes_and_intervals_default_to_one_epoch(tmp_path):
    result = fit(
        KD, TRAIN, epochs=2, key=jax.random.key(1), eval_data=VAL, directory=tmp_path, tensorboard=False, progress=False
    )
    assert [row["step"] for row in result.history] == [5, 10]
    assert int(result.state.step) == 2 * TRAIN.steps_per_epoch
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.steps() == (5, 10)
    assert not (tmp_path / "tensorboard").exists()


@pytest.fixture
def untraced(monkeypatch):
    """The distiller of `toy`, with a step that no other test has traced."""
    monkeypatch.setattr(toy, "KD", KD._replace(step=lambda state, batch: KD.step(state, batch)))
    TRACES.clear()


def test_a_step_is_traced_once_for_all_chunk_lengths_and_runs(untraced, tmp_path):
    for _ in range(2):
        run("resident", eval_every=12, steps=36, chunk=4)
    run("resident", eval_every=12, steps=39, chunk=4)  # a last piece of three
    run("resident", tmp_path)  # its identity
    assert len(TRACES) == 1


def test_streaming_step_is_traced_once(untraced, tmp_path):
    run("streaming", tmp_path, steps=24)
    assert len(TRACES) == 1


@both
def test_states_are_donated_but_not_the_arrays_of_the_caller(mode):
    states = []
    key = jax.random.key(1)
    given = KD.init(key, TRAIN.gather(TRAIN.arrays, 0))
    settings = {**SETTINGS, "checkpoint_every": None, "eval_data": VAL, "on_eval": lambda *args: states.append(args[2])}
    from_state = fit(KD, data(mode), state=given, **settings)
    from_key = fit(KD, data(mode), key=key, **settings)
    assert bits(from_state.state) == bits(from_key.state)
    assert all(leaf.is_deleted() for state in states[:5] for leaf in jax.tree.leaves(state.student))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((given, key, from_state.state, TRAIN.arrays)))


def test_host_does_not_wait_for_streamed_steps(monkeypatch):
    """Metrics are fetched a window of steps later."""
    waited, sent = [], []
    asarray = np.asarray

    def spy(x, *args):
        if isinstance(x, jax.Array):
            waited.append(len(sent))
        return asarray(x, *args)

    monkeypatch.setattr(_logs.np, "asarray", spy)
    fit(KD, Streaming(TRAIN, on_next=sent.append), steps=70, key=jax.random.key(1), log_every=5, progress=False)
    assert waited == [32, 48, 64, 70, 70]  # for the first 16, the next 16, ...


def test_seeds_under_vmap_are_logged_in_separate_columns():
    mapped = Distiller(
        lambda key, batch: jax.vmap(KD.init, in_axes=(0, None))(jax.random.split(key, 3), batch),
        jax.vmap(KD.step, in_axes=(0, None)),
        jax.vmap(KD.evaluate, in_axes=(0, None)),
    )
    settings = {"steps": 6, "chunk": 3, "log_every": 5, "progress": False}
    result = fit(mapped, TRAIN, key=jax.random.key(1), eval_data=VAL, **settings)
    assert {"train/loss[0]", "train/loss[2]", "eval/accuracy[1]"} < set(result.history[-1])
    alone = fit(KD, TRAIN, key=jax.random.split(jax.random.key(1), 3)[1], **settings)
    assert result.history[-1]["train/loss[1]"] == pytest.approx(alone.history[-1]["train/loss"], rel=1e-4)


def test_metric_with_a_count_of_zero_is_nan_and_null_in_json(tmp_path):
    """Such as the loss of a skipped step, or a term that only some batches have."""
    rows = _logs.RowAccumulator(Cadence(steps=4, log_every=2), steps_per_epoch=2)
    for step in range(4):
        skipped = float(step in (1, 2, 3))
        means = {"loss": Mean(step * (1 - skipped), 1 - skipped), "skipped": Mean(skipped, 1.0)}
        rows.add(step, pack(means), 1)
    first, second = rows.complete()
    assert (first["train/loss"], first["train/skipped"]) == (0.0, 0.5)
    assert math.isnan(second["train/loss"]) and second["train/skipped"] == 1
    with _logs.Logs(tmp_path, tensorboard=False) as written:
        written.write(first)
        written.write(second)
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["train/loss"] is None


# --- refused arguments, and progress ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 2}, "exactly one of steps and epochs, got steps and epochs"),
        ({"steps": None}, "exactly one of steps and epochs, got neither"),
        ({"steps": 0}, "steps: expected a positive number, got 0"),
        ({"log_every": 0}, "log_every: expected a positive number"),
        ({"eval_data": None, "best": None}, "eval_every needs an evaluation: give eval_data="),
        ({"eval_data": None, "eval_every": None}, "best='eval/loss' needs an evaluation"),
        ({"best_mode": "least"}, "best_mode: expected 'max' or 'min', got 'least'"),
        ({"best": "eval/acuracy"}, "did you mean 'eval/accuracy'"),
        ({"eval_data": {"train": VAL}}, "the name 'train' is reserved for the training metrics"),
        ({"state": 1}, "exactly one of key and state, got key and state"),
    ],
)
def test_contradictory_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        run("resident", **settings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kd": jaxkd.adapters.plain(lambda key, x: x, lambda w, x: x)}, "kd: expected a distiller, .* got Model"),
        ({"kd": KD.step}, "kd: expected a distiller, .* got function"),
        ({"train_data": TRAIN.arrays}, r"train_data: expected an input .* got dict without .*data\.Resident"),
        ({"train_data": [1, 2]}, "train_data: expected an input with .* got list without"),
        ({"train_data": iter([])}, "got list_iterator without batch_size, steps_per_epoch, batches"),
        ({"eval_data": TRAIN.arrays}, r"eval_data\['x'\]: expected an input .* got ArrayImpl"),
        ({"eval_data": 3}, "eval_data: expected an input .* got int"),
        ({"key": 0}, r"key: expected a PRNG key, such as jax\.random\.key\(0\), got int"),
        ({"key": jnp.zeros(2)}, r"key: expected a PRNG key, .* got float32\[2\]"),
        ({"key": None, "state": {"w": 1}}, r"state: expected a TrainState, .* got dict"),
        ({"steps": 3.5}, r"steps: expected a whole number, got 3\.5"),
        ({"steps": True}, "steps: expected a whole number, got True"),
        ({"log_every": "5"}, "log_every: expected a whole number, got '5'"),
        ({"on_eval": 3}, "on_eval: expected a function or None, got int"),
        ({"on_row": "wandb"}, "on_row: expected a function or None, got str"),
        ({"directory": 3}, "directory: expected a path or None, got int"),
    ],
)
def test_arguments_of_another_kind_are_refused(changed, message):
    settings = {"kd": KD, "train_data": TRAIN, "steps": 3, "key": jax.random.key(0), "progress": False, **changed}
    with pytest.raises(TypeError, match=message):
        fit(settings.pop("kd"), settings.pop("train_data"), **settings)


def test_unusable_inputs_and_states_are_refused():
    class Short(Streaming):
        epochs = 2

    with pytest.raises(ValueError, match=r"at least 11 batches, got one that ends after 2 epochs of 5\. .*epochs=None"):
        fit(KD, Short(TRAIN), steps=11, key=jax.random.key(0))
    with pytest.raises(ValueError, match="eval_data: expected at least one input by name"):
        fit(KD, TRAIN, steps=1, key=jax.random.key(0), eval_data={})
    sized = Resident()
    sized.steps_per_epoch = 2.5
    with pytest.raises(ValueError, match=r"positive whole number as its steps_per_epoch, got 2\.5"):
        fit(KD, sized, steps=1, key=jax.random.key(0))
    state = KD.init(jax.random.key(0), TRAIN.gather(TRAIN.arrays, 0))
    state.student.params["w"].delete()
    with pytest.raises(ValueError, match=r"got \d that a step has taken over, the first is student/params/w"):
        fit(KD, TRAIN, steps=1, state=state)


def test_chunk_is_chosen_by_the_backend(monkeypatch):
    settings = {"evaluates": False, "saves": False, "steps": 1, "epochs": None, "eval_every": None}
    settings |= {"checkpoint_every": None, "log_every": 1}
    assert make_cadence(5, chunk=None, **settings).chunk == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert make_cadence(5, chunk=None, **settings).chunk == 100
    assert make_cadence(5, chunk=7, **settings).chunk == 7


def test_every_logged_row_reaches_the_hook_with_times(tmp_path):
    rows: list = []

    def slow(step, *_):
        time.sleep(0.2)

    result = run("resident", tmp_path, on_row=rows.append, on_eval=slow, steps=18)
    assert rows == list(result.history)
    assert [row["step"] for row in rows if "eval/loss" in row] == [6, 12, 18]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds) and seconds[-1] > 0.4
    assert all(row["examples_per_second"] > 0 for row in rows if "train/loss" in row)
    rows.clear()
    longer = run("resident", tmp_path, on_row=rows.append)
    assert rows == list(longer.history[len(result.history) :])
    assert rows[0]["seconds"] > seconds[-1]


def test_weights_are_logged_where_they_change():
    def step(state, batch):
        state, metrics = KD.step(state, batch)
        number = state.step - 1
        values = {"kd/weight": jnp.float32(0.5), "ce/weight": jnp.where(number < 4, 1.0, 2.0)}
        return state, {**metrics, **{name: Mean(value, jnp.float32(1)) for name, value in values.items()}}

    result = fit(KD._replace(step=step), TRAIN, steps=6, log_every=1, key=jax.random.key(1), progress=False)
    found = [{n: row[n] for n in ("train/kd/weight", "train/ce/weight") if n in row} for row in result.history]
    assert found == [{"train/kd/weight": 0.5, "train/ce/weight": 1.0}, {}, {}, {}, {"train/ce/weight": 2.0}, {}]


def test_checkpoints_need_a_directory():
    with pytest.raises(ValueError, match="checkpoint_every needs a directory to save checkpoints in"):
        fit(KD, TRAIN, steps=1, key=jax.random.key(0), checkpoint_every=1)


def test_invalid_and_exhausted_inputs_are_refused():
    with pytest.raises(ValueError, match=r"ended after 7 of 36 steps\. Let it repeat"):
        run("streaming", train=Streaming(TRAIN, end=7))
    with pytest.raises(ValueError, match="expected at least one batch, and the input has none"):
        run("streaming", train=Streaming(TRAIN, end=0))
    with pytest.raises(ValueError, match="ended after 2 batches, and its steps_per_epoch is 3"):
        run("streaming", eval_data=Streaming(VAL, end=2))

    class Generator(Streaming):
        def batches(self, state=None):
            yield from super().batches(state)

    with pytest.raises(TypeError, match="generator has no get_state"):
        run("streaming", train=Generator(TRAIN))


def test_config_that_json_cannot_hold_is_refused():
    with pytest.raises(TypeError, match=r"config\.model\[0\]: expected what JSON can hold .* got function"):
        run("resident", config={"model": [test_config_that_json_cannot_hold_is_refused]})


def test_equal_configs_have_no_differences():
    config = {"a": [1, 2], "b": {"c": None}, "d": {}}
    assert (
        _run_identity.differences(json.loads(json.dumps(_run_identity.plain(config))), _run_identity.plain(config))
        == []
    )


def test_pieces_end_at_events_have_few_lengths_and_do_not_depend_on_the_start():
    for steps, evaluates, saves, chunk in itertools.product((97, 200), (None, 7, 30, 60), (None, 30, 45), (1, 16, 100)):
        cadence = Cadence(steps, 10, evaluates, saves, chunk)
        edges = [0]
        while edges[-1] < steps:
            edges.append(next_piece(cadence, edges[-1]))
        lengths = np.diff(edges)
        assert edges[-1] == steps
        assert 0 < lengths.min() <= lengths.max() <= chunk
        assert {
            step for step in range(1, steps + 1) if due(evaluates, step, cadence) or due(saves, step, cadence)
        } <= set(edges)
        assert len(set(lengths)) <= 8
        for step in range(steps):
            assert next_piece(cadence, step) == min(edge for edge in edges if edge > step)


def test_progress_without_a_terminal_is_printed_as_lines(capsys):
    run("resident", progress=True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert out.startswith("step 36/36  train/loss")
    assert "eval/accuracy" in out


def test_progress_on_a_terminal_is_a_bar_with_an_eta():
    from rich.console import Console

    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    with show_progress(10, console=console) as show:
        show(5, {"step": 5, "train/loss": 0.25})
        show(10, {"step": 10, "eval/accuracy": 0.5})
    text = console.file.getvalue()
    assert "10/10" in text
    assert "ETA" in text
    assert "train/loss 0.2500  eval/accuracy 0.5000" in text
