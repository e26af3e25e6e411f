"""What a run survives: hooks and inputs that raise, Ctrl-C, SIGKILL, another configuration, a NaN."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxkd
from jaxkd import losses
from jaxkd.training.checkpoint import CheckpointError, Checkpoints
from jaxkd.training.loop import fit
from jaxkd.training.meter import NonFiniteError
from jaxkd.types import Variables
from tests.training import toy
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
    data,
    files,
    raising,
    run,
)

both = pytest.mark.parametrize("mode", ["resident", "streaming"])


def same(result, directory, expected):
    expected_result, expected_files, expected_steps = expected
    assert bits(result.state) == bits(expected_result.state)
    assert bits(result.best_state) == bits(expected_result.best_state)
    assert result.best == expected_result.best
    assert result.history == expected_result.history
    assert files(directory) == expected_files
    with Checkpoints(directory / "checkpoints") as checkpoints:
        assert set(expected_steps) <= set(checkpoints.steps())


@both
@pytest.mark.parametrize("at", [6, 18, 30])
def test_a_hook_that_raises_costs_nothing_but_time(mode, at, tmp_path, straight):
    with pytest.raises(Died):
        run(mode, tmp_path, on_eval=raising(at, Died()))
    same(run(mode, tmp_path), tmp_path, straight[mode])


def test_an_input_that_raises_anywhere_costs_nothing_but_time(tmp_path, straight):
    at = random.Random(0).sample(range(1, STEPS), 3)
    for step in sorted(at):
        with pytest.raises(Died):
            run("streaming", tmp_path, train=Streaming(TRAIN, on_next=raising(step, Died())))
    same(run("streaming", tmp_path), tmp_path, straight["streaming"])


@both
@pytest.mark.parametrize("how", ["signal", "exception"])
def test_ctrl_c_saves_where_it_is(mode, how, tmp_path, straight):
    def interrupt(step, *_):
        if step == 18:  # no checkpoint is due here
            if how == "exception":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(mode, tmp_path, on_eval=interrupt)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 18
    same(run(mode, tmp_path), tmp_path, straight[mode])


@pytest.mark.parametrize("how", ["signal", "exception"])
def test_ctrl_c_between_events_of_a_stream_keeps_half_a_row(how, tmp_path, straight):
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


@both
def test_sigkill_costs_nothing_but_time(mode, tmp_path, straight):
    """A real process, killed at a random moment after its first checkpoint, perhaps while it saves the next."""
    root = pathlib.Path(jaxkd.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    child = subprocess.Popen([sys.executable, toy.__file__, mode, str(tmp_path)], env=environment)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "checkpoints/12").exists():
            assert child.poll() is None, "the child ended by itself"
            assert time.monotonic() < deadline, "the child made no checkpoint"
            time.sleep(0.01)
        time.sleep(random.Random(mode).uniform(0, 0.5))
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    # As if it had also been writing a row.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 35, "train/lo')
    same(run(mode, tmp_path), tmp_path, straight[mode])


@both
def test_a_finished_run_is_returned_at_once(mode, tmp_path, straight):
    run(mode, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("metrics.*")}

    def fail(*args):
        raise AssertionError("nothing is left to do")

    again = fit(
        KD._replace(step=fail, evaluate=fail), data(mode), directory=tmp_path, key=jax.random.key(1), evaluate=VAL,
        best="eval/loss", best_mode="min", config={"lr": 0.05}, on_eval=fail, **SETTINGS,
    )  # fmt: skip
    same(again, tmp_path, straight[mode])
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("metrics.*")}


@both
def test_a_run_can_be_made_longer(mode, tmp_path, straight):
    run(mode, tmp_path, steps=24, log_every=4)
    longer = run(mode, tmp_path, log_every=4)
    assert bits(longer.state) == bits(straight[mode][0].state)
    assert [row["step"] for row in longer.history] == sorted({*range(4, 37, 4), *range(6, 37, 6)})
    with pytest.raises(ValueError, match="is at step 36, beyond the 30 asked for"):
        run(mode, tmp_path, steps=30, log_every=4)


def test_a_different_run_is_refused_with_the_difference(tmp_path):
    run("resident", tmp_path, steps=6)
    with pytest.raises(ValueError, match=r"holds a different run:\n  config\.lr: 0\.05 there, 0\.1 here\nMake"):
        run("resident", tmp_path, config={"lr": 0.1})
    with pytest.raises(ValueError, match=r"every\.log_every: 5 there, 4 here"):
        run("resident", tmp_path, log_every=4)
    with pytest.raises(ValueError, match=r"train\.batch_size: 8 there, 10 here"):
        run("resident", tmp_path, train=Resident(batch_size=10))
    with pytest.raises(ValueError, match=r"key: \[0, 1\] there, \[0, 2\] here"):
        fit(
            KD, TRAIN, directory=tmp_path, key=jax.random.key(2), evaluate=VAL, best="eval/loss", best_mode="min",
            config={"lr": 0.05}, **SETTINGS,
        )  # fmt: skip
    with pytest.raises(ValueError, match="holds a run already"):
        run("resident", tmp_path, resume=False)
    assert int(run("resident", tmp_path, steps=6).state.step) == 6


def test_another_model_is_refused_with_the_difference(tmp_path):
    run("resident", tmp_path, steps=6)
    wider = KD._replace(init=lambda key, batch: KD.init(key, {"x": jnp.zeros((1, 7))}))
    with pytest.raises(CheckpointError, match=r"student/params/w: float32\[5\] in the checkpoint, float32\[7\]"):
        fit(
            wider, TRAIN, directory=tmp_path, key=jax.random.key(1), evaluate=VAL, best="eval/loss", best_mode="min",
            config={"lr": 0.05}, **SETTINGS,
        )  # fmt: skip


@both
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_term(mode, tmp_path):
    train = Resident(poison=20)
    train = train if mode == "resident" else Streaming(train)
    for _ in range(2):  # and again when it is gone on with
        with pytest.raises(NonFiniteError) as error:
            run(mode, tmp_path, train=train)
        assert (error.value.step, error.value.terms) == (21, ("ce", "loss"))
        assert "update 21: 'ce' is nan, 'loss' is nan" in str(error.value)
        last = 18 if (tmp_path / "checkpoints/18").exists() else 12  # 18, if that was the best
        assert f"The last good checkpoint is of step {last}, {tmp_path / 'checkpoints' / str(last)}" in str(error.value)
        rows = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
        assert rows == [5, 6, 10, 12, 15, 18, 20]


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
    def step(state, batch):
        state, metrics = KD.step(state, batch)
        broken = jnp.where(state.step == 12, jnp.inf, state.student.params["b"])
        return state._replace(student=Variables({**state.student.params, "b": broken})), metrics

    with pytest.raises(NonFiniteError, match=r"parameters are not finite after update 12.*There is no checkpoint"):
        fit(KD._replace(step=step), TRAIN, steps=24, checkpoint_every=12, directory=tmp_path, key=jax.random.key(1),
            progress=False)  # fmt: skip


def test_a_distilled_model_resumes_exactly(tmp_path):
    """With the toolkit's own distiller: a learned regressor, BatchNorm-like state apart, everything in its state."""

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
    settings = {"key": jax.random.key(2), "evaluate": VAL, "log_every": 4, "eval_every": 6, "progress": False}
    straight = fit(kd, TRAIN, steps=12, **settings)
    with pytest.raises(Died):
        fit(kd, TRAIN, steps=12, directory=tmp_path, on_eval=raising(6, Died()), **settings)
    resumed = fit(kd, TRAIN, steps=12, directory=tmp_path, **settings)
    assert bits(resumed.state) == bits(straight.state)
    assert resumed.history == straight.history
    assert {"train/kd", "train/hint", "train/hint/weight", "eval/agreement"} < set(straight.history[-1])
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(weights))
