"""Resuming a run after exceptions, signals and damage; refusal of other settings; losses that are not finite."""

import json
import os
import random
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
import jaxkd.data
from jaxkd import losses
from jaxkd.data import Dataset
from jaxkd.training import CheckpointError, Checkpoints, NonFiniteError, Preempted, _compiled_steps, fit
from jaxkd.training._run_directory import Best, Snapshot
from jaxkd.types import Variables
from tests.training.toy import (
    FEATURES,
    KD,
    SETTINGS,
    STEPS,
    TRAIN,
    VAL,
    Died,
    Resident,
    Streaming,
    bits,
    files,
    raising,
    run,
    timeless,
)

both = pytest.mark.parametrize("mode", ["resident", "streaming"])


def same(result, directory, expected):
    expected_result, expected_files, expected_steps = expected
    assert bits(result.state) == bits(expected_result.state)
    assert bits(result.best_state) == bits(expected_result.best_state)
    assert result.best == expected_result.best
    assert timeless(result.history) == timeless(expected_result.history)
    assert files(directory) == expected_files
    with Checkpoints(directory / "checkpoints") as checkpoints:
        assert set(expected_steps) <= set(checkpoints.steps())


@both
@pytest.mark.parametrize("at", [6, 18, 30])
def test_run_resumes_exactly_after_a_hook_raises(mode, at, tmp_path, straight):
    with pytest.raises(Died):
        run(mode, tmp_path, on_eval=raising(at, Died()))
    same(run(mode, tmp_path), tmp_path, straight[mode])


def test_run_resumes_exactly_after_an_input_raises(tmp_path, straight):
    at = random.Random(0).sample(range(1, STEPS), 3)
    for step in sorted(at):
        with pytest.raises(Died):
            run("streaming", tmp_path, train=Streaming(TRAIN, on_next=raising(step, Died())))
    same(run("streaming", tmp_path), tmp_path, straight["streaming"])


@both
@pytest.mark.parametrize("how", ["SIGINT", "SIGTERM", "exception"])
def test_signal_saves_a_checkpoint_of_the_current_step(mode, how, tmp_path, straight):
    def interrupt(step, *_):
        if step == 18:  # no checkpoint is due here
            if how == "exception":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.Signals[how])

    with pytest.raises(Preempted if how == "SIGTERM" else KeyboardInterrupt) as stopped:
        run(mode, tmp_path, on_eval=interrupt)
    if how == "SIGTERM":
        assert (stopped.value.code, stopped.value.step) == (75, 18)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 18
    same(run(mode, tmp_path), tmp_path, straight[mode])


@pytest.mark.parametrize("how", ["signal", "exception"])
def test_ctrl_c_between_events_of_a_stream_saves_the_partial_row(how, tmp_path, straight):
    def interrupt(step):
        if step == 14:
            if how == "exception":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run("streaming", tmp_path, train=Streaming(TRAIN, on_next=interrupt))
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == (14 if how == "exception" else 15)
        assert [row["step"] for row in checkpoints.extra()["history"]][-1] == (12 if how == "exception" else 15)
    same(run("streaming", tmp_path), tmp_path, straight["streaming"])


def test_signals_with_a_handler_of_the_user_are_left_alone(tmp_path):
    def watch(step, *_):
        seen.append((signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)))

    def of_the_user(number, frame):
        raise AssertionError("no signal is sent")

    seen: list = []
    run("resident", steps=6, on_eval=watch)
    assert seen[0][1] is signal.SIG_DFL  # without a directory, SIGTERM is not handled
    before = signal.signal(signal.SIGTERM, of_the_user)
    try:
        run("resident", tmp_path / "a", steps=6, on_eval=watch)
        assert signal.getsignal(signal.SIGTERM) is of_the_user
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen[1][1] is of_the_user
    thread = threading.Thread(target=run, args=("resident", tmp_path / "b"), kwargs={"steps": 6, "on_eval": watch})
    thread.start()
    thread.join()
    assert seen[2] == (signal.default_int_handler, signal.SIG_DFL)


@both
def test_run_resumes_exactly_after_a_checkpoint_is_damaged(mode, tmp_path, straight):
    with pytest.raises(Died):
        run(mode, tmp_path, on_eval=raising(30, Died()))
    last = max(int(path.name) for path in tmp_path.glob("checkpoints/*"))
    # A power failure may leave a file of zeros, a killed process an incomplete row.
    file = next((tmp_path / "checkpoints" / str(last) / "state").glob("ocdbt.process_0/d/*"))
    file.write_bytes(bytes(file.stat().st_size))
    with (tmp_path / "metrics.jsonl").open("a") as rows:
        rows.write('{"step": 35, "train/lo')
    (tmp_path / "metrics.csv.unfinished-4711").write_text("step,tr")
    with pytest.warns(
        UserWarning, match=rf"the checkpoint of step {last} is damaged: state/ocdbt.process_0/d/.* as .*corrupt"
    ):
        resumed = run(mode, tmp_path)
    same(resumed, tmp_path, straight[mode])
    assert (tmp_path / f"checkpoints/{last}.corrupt").exists()
    assert not list(tmp_path.glob("*.unfinished-*"))


def test_run_with_only_damaged_checkpoints_is_refused(tmp_path):
    run("resident", tmp_path, steps=12)
    for path in tmp_path.glob("checkpoints/*/extra.json"):
        path.write_bytes(b"")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(
        CheckpointError, match=r"(?s)all checkpoints in .* are damaged:.*extra.json.*Nothing was deleted"
    ):
        run("resident", tmp_path, steps=12)
    assert before == {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"
    }


def test_lost_best_state_is_reported_and_the_run_continues(tmp_path):
    def run_with_an_early_best(**settings):
        return run("resident", tmp_path, best="eval/loss", best_mode="max", keep=1, **settings)

    early = run_with_an_early_best(steps=24).best.step
    assert sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir()) == [early, 24]
    (tmp_path / f"checkpoints/{early}/extra.json").write_bytes(b"")
    with pytest.warns(UserWarning) as found:
        result = run_with_an_early_best()
    assert f"the checkpoint of step {early} is damaged" in str(found[0].message)
    assert f"the best checkpoint so far, of step {early}, is damaged or missing" in str(found[1].message)
    assert (result.best.step, result.best_state) == (early, None)
    assert int(result.state.step) == STEPS


@both
def test_finished_run_is_returned_at_once(mode, tmp_path, straight, monkeypatch):
    run(mode, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("metrics.*")}

    def fail(*args, **kwargs):
        raise AssertionError("nothing is left to do")

    for program in ("run_chunk", "run_step"):
        monkeypatch.setattr(_compiled_steps, program, lambda *args: _compiled_steps.StepProgram(fail, fail))
    monkeypatch.setattr(_compiled_steps, "evaluate", fail)
    same(run(mode, tmp_path, on_eval=fail), tmp_path, straight[mode])
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("metrics.*")}


@both
def test_run_can_be_made_longer(mode, tmp_path, straight):
    run(mode, tmp_path, steps=24, log_every=4)
    longer = run(mode, tmp_path, log_every=4)
    assert bits(longer.state) == bits(straight[mode][0].state)
    assert [row["step"] for row in longer.history] == sorted({*range(4, 37, 4), *range(6, 37, 6)})
    with pytest.raises(ValueError, match="is at step 36, beyond the 30 asked for"):
        run(mode, tmp_path, steps=30, log_every=4)


def test_run_with_other_settings_is_refused_with_the_differences(tmp_path):
    run("resident", tmp_path, steps=6)
    with pytest.raises(ValueError, match=r"holds a different run:\n  config\.lr: stored 0\.05, given 0\.1\nMake"):
        run("resident", tmp_path, config={"lr": 0.1})
    with pytest.raises(ValueError, match=r"eval_every: stored 6, given 3"):
        run("resident", tmp_path, eval_every=3)
    with pytest.raises(ValueError, match=r"train\.batch_size: stored 8, given 10"):
        run("resident", tmp_path, train=Resident(batch_size=10))
    with pytest.raises(ValueError, match=r"key: stored \[0, 1\], given \[0, 2\]"):
        fit(
            KD, TRAIN, directory=tmp_path, key=jax.random.key(2), eval_data=VAL, best="eval/loss", best_mode="min",
            config={"lr": 0.05}, **SETTINGS,
        )  # fmt: skip
    with pytest.raises(ValueError, match="holds a run already"):
        run("resident", tmp_path, resume=False)
    assert int(run("resident", tmp_path, steps=6).state.step) == 6


def test_run_with_another_model_is_refused_with_the_differences(tmp_path):
    run("resident", tmp_path, steps=6)
    wider = KD._replace(init=lambda key, batch: KD.init(key, {"x": jnp.zeros((1, 7))}))
    message = r"different run:\n(  state\..*\n)?  state\.student/params/w: stored 'float32\[5\]', given 'float32\[7\]'"
    with pytest.raises(ValueError, match=message):
        fit(
            wider, TRAIN, directory=tmp_path, key=jax.random.key(1), eval_data=VAL, best="eval/loss", best_mode="min",
            config={"lr": 0.05}, **SETTINGS,
        )  # fmt: skip


def sets(change=None, examples=40):
    """The toy data as a `jaxkd.data.Dataset`, optionally with one row of an entry changed."""
    arrays = {name: np.array(value) for name, value in Resident(examples).arrays.items()}
    for name, row in (change or {}).items():
        arrays[name][row] += 1
    return Dataset({**arrays, "mask": np.ones(examples, bool)}, 1, "toy")


def resident(dataset, **settings):
    return jaxkd.data.Resident(dataset, 8, **settings)


def stream(dataset, **settings):
    return jaxkd.data.Stream(dataset, 8, **settings)


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (lambda: resident(sets()), lambda: resident(sets({"y": 17})), r"data\.train\.content: stored '\w+', given '"),
        (lambda: resident(sets()), lambda: resident(sets(examples=39)), r"data\.train\.examples: stored 40, given 39"),
        (lambda: resident(sets()), lambda: resident(sets(), seed=5), r"data\.train\.seed: stored 0, given 5"),
        (lambda: stream(sets()), lambda: stream(sets({"x": -1})), r"data\.train\.first_and_last: stored '\w+\'"),
        (lambda: stream(sets()), lambda: stream(sets(), transform=lambda x: {**x, "x": 2 * x["x"]}), r"first_and_last"),
        (lambda: resident(sets()), lambda: stream(sets({"y": 0})), r"data\.train\.first_and_last: stored '\w+\'"),
    ],
)
def test_run_on_other_data_is_refused_with_the_differences(first, second, message, tmp_path):
    run("resident", tmp_path, steps=6, train=first(), eval_data=None, eval_every=None, best=None)
    with pytest.raises(ValueError, match=rf"(?s)holds a different run:\n.*{message}"):
        run("resident", tmp_path, train=second(), eval_data=None, eval_every=None, best=None)


def test_run_with_other_evaluation_data_is_refused(tmp_path):
    run("resident", tmp_path, steps=6, eval_data=resident(sets(), shuffle=False))
    with pytest.raises(ValueError, match=r"data\.eval\.content: stored '\w+', given '\w+'\nMake"):
        run("resident", tmp_path, eval_data=resident(sets({"y": 3}), shuffle=False))


def test_fingerprint_omits_content_behind_a_random_transform():
    noise = iter(range(100))
    found = stream(sets(), transform=lambda example: {**example, "x": example["x"] + next(noise)}).fingerprint()
    assert found == {"examples": 40, "seed": 0, "shuffle": True, "padded": False}


def test_run_can_resume_from_a_stream_of_the_same_data(tmp_path):
    """Both give the same batches, but their compiled programs may round differently."""
    settings = {"eval_data": None, "eval_every": None, "best": None}
    whole = run("resident", train=resident(sets()), steps=24, **settings)
    run("resident", tmp_path, train=resident(sets()), steps=12, **settings)
    found = run("resident", tmp_path, train=stream(sets()), steps=24, **settings)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole.state[:4], found.state[:4])


@both
def test_nonfinite_loss_ends_the_run_and_names_the_term(mode, tmp_path):
    train = Resident(poison=20)
    train = train if mode == "resident" else Streaming(train)
    for _ in range(2):  # and again after resuming
        with pytest.raises(NonFiniteError) as error:
            run(mode, tmp_path, train=train)
        assert (error.value.step, error.value.terms) == (21, ("ce", "loss"))
        assert "update 21: 'ce' is nan, 'loss' is nan" in str(error.value)
        rows = TRAIN.gather(TRAIN.arrays, 20)["index"]
        assert error.value.indices.tolist() == rows.tolist()
        assert f'The batch["index"] of its 8 examples: {", ".join(map(str, rows.tolist()))}. The last' in str(
            error.value
        )
        last = 18 if (tmp_path / "checkpoints/18").exists() else 12  # 18, if that was the best
        path = tmp_path / "checkpoints" / str(last)
        assert f"The last good checkpoint is that of step {last}, {path}" in str(error.value)
        rows = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert rows == [5, 6, 10, 12, 15, 18, 20]


@both
def test_examples_of_a_nonfinite_update_are_named_without_padding_windows_later(mode):
    train = Resident(examples=45, batch_size=30, poison=39)  # the second half of a pass, half of it padding
    train = train if mode == "resident" else Streaming(train)
    with pytest.raises(NonFiniteError) as error:
        run(mode, train=train, steps=100, eval_every=100, chunk=100, log_every=1)
    batch = Resident(examples=45, batch_size=30).gather(Resident(examples=45).arrays, 39)
    assert error.value.step == 40
    assert error.value.indices.tolist() == batch["index"][batch["mask"]].tolist()
    assert len(error.value.indices) == 15


def test_nonfinite_error_shows_at_most_twenty_examples():
    with pytest.raises(NonFiniteError, match=r"of its 40 examples: (\d+, ){19}\d+ and 20 more\. There is no"):
        run("resident", train=Resident(batch_size=40, poison=3))
    train = Resident(poison=3)
    del train.arrays["index"]
    with pytest.raises(NonFiniteError, match=r"'loss' is nan\. There is no checkpoint") as error:
        run("resident", train=train)
    assert error.value.indices is None


def test_snapshot_survives_json_and_refuses_other_entries():
    row = {"step": 2, "train/loss": 0.5}
    snapshot = Snapshot(3, {"step": 3}, {"loss": [1.0, 2.0]}, (row,), Best(2, 0.5), {"config": {"lr": 0.1}})
    stored = json.loads(json.dumps(snapshot.to_json()))
    assert Snapshot.from_json(stored) == snapshot
    assert Snapshot.from_json(Snapshot().to_json()) == Snapshot()
    del stored["identity"]
    with pytest.raises(CheckpointError, match=r"no snapshot of a run: expected the entries .*'identity'.*got"):
        Snapshot.from_json(stored)


def test_nonfinite_parameters_are_never_saved(tmp_path):
    def step(state, batch):
        state, metrics = KD.step(state, batch)
        broken = jnp.where(state.step == 12, jnp.inf, state.student.params["b"])
        return state._replace(student=Variables({**state.student.params, "b": broken})), metrics

    with pytest.raises(NonFiniteError, match=r"parameters are not finite after update 12.*There is no checkpoint"):
        fit(KD._replace(step=step), TRAIN, steps=24, checkpoint_every=12, directory=tmp_path, key=jax.random.key(1),
            progress=False)  # fmt: skip


def test_distilled_model_resumes_exactly(tmp_path):
    """A distiller of `jaxkd.distill` with a scheduled weight, which the toy distiller does not have."""

    def init(key, x):
        first, second = jax.random.split(key)
        width = 4
        return {"w": 0.1 * jax.random.normal(first, (FEATURES, width)), "v": jax.random.normal(second, (width, 3))}

    def apply(params, x):
        hidden = jnp.tanh(x @ params["w"])
        return {"logits": hidden @ params["v"], "hidden": hidden}

    model = jaxkd.adapters.plain(init, apply, inputs="x")
    weights = model.init(jax.random.key(5), {"x": jnp.zeros((1, FEATURES))})
    objective = jaxkd.combine(
        kd=jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.9),
        hint=jaxkd.term(
            losses.hint_mse, "student/hidden", "teacher/hidden", weight=optax.linear_schedule(1.0, 0.0, 20)
        ),
    )
    teacher = jaxkd.teachers.frozen(model, weights)
    kd = jaxkd.distill(model, teacher, objective, optimizer=optax.adam(0.01))
    settings = {"key": jax.random.key(2), "eval_data": VAL, "log_every": 4, "eval_every": 6, "progress": False}
    straight = fit(kd, TRAIN, steps=12, **settings)
    with pytest.raises(Died):
        fit(kd, TRAIN, steps=12, directory=tmp_path, on_eval=raising(6, Died()), **settings)
    resumed = fit(kd, TRAIN, steps=12, directory=tmp_path, **settings)
    assert bits(resumed.state) == bits(straight.state)
    assert timeless(resumed.history) == timeless(straight.history)
    assert {"train/kd", "train/hint", "train/hint/weight", "eval/agreement"} < set(straight.history[-1])
    # A constant weight is in the first row alone.
    assert [row["train/kd/weight"] for row in straight.history if "train/kd/weight" in row] == [pytest.approx(0.9)]
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(weights))
