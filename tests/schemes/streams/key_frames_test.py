"""`schemes.streams.key_frames`: measured before it adapts, teachers on key frames only, exact in mid-stream."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import adapters, data, teachers, term, wrappers
from jaxkd.schemes import streams
from jaxkd.training import fit
from jaxkd.types import Mean
from tests import tiny

RATE, THRESHOLD, UPDATES = 0.2, 0.05, 2

linear = adapters.plain(
    lambda key, x: {"a": jax.random.normal(key, (3, 2)), "b": jnp.ones(2)},
    lambda w, x: {"logits": x @ w["a"] * w["b"][None], "feature": x},
    inputs="x",
)
TAUGHT = jaxkd.Variables({"a": jnp.array([[1.0, -1.0], [0.5, 2.0], [-2.0, 0.0]]), "b": jnp.ones(2)})


def squares(student, teacher):
    return jnp.mean((student - teacher) ** 2, axis=-1)


MSE = term(squares, "student/logits", "teacher/logits")


def shown(context):
    return {"shown": Mean(context.student["logits"][0], jnp.ones(2))}


def distilled(rule, student=linear, teacher=None, **options):
    options = {"updates": UPDATES, "threshold": THRESHOLD, "train_metrics": shown, **options}
    options.setdefault("optimizer", optax.sgd(RATE))
    teacher = teacher or teachers.frozen(linear, TAUGHT)
    return streams.key_frames(student, teacher, MSE, rule, metrics=(), **options)


def frames(count, seed=0):
    rng = np.random.default_rng(seed)
    clip = np.repeat(np.arange(count), 3)[:count].astype(np.int32)
    return {"x": rng.normal(size=(count, 3)).astype(np.float32), "clip": clip}


def frame(stream, number):
    return {name: x[number : number + 1] for name, x in stream.items()}


def run(kd, stream, state=None):
    """Returns the states of a stream and the metrics of each frame."""
    step = jax.jit(kd.step)
    states, found = [state or kd.init(jax.random.key(0), frame(stream, 0))], []
    for number in range(len(stream["x"])):
        state, metrics = step(states[-1], frame(stream, number))
        states.append(state)
        found.append(jax.tree.map(np.asarray, dict(metrics)))
    return states, found


def reference(params, x):
    """Returns the loss of a frame and its gradient, in float64."""
    a, b, x = (np.asarray(value, np.float64) for value in (params["a"], params["b"], x[0]))
    known = TAUGHT.params
    error = x @ a * b - x @ np.asarray(known["a"], np.float64) * np.asarray(known["b"], np.float64)
    return (error**2).mean(), {"a": np.outer(x, error * b), "b": error * (x @ a)}  # 2 · error / 2 values


def test_a_stream_is_that_of_the_paper():
    stream = frames(7)
    states, found = run(distilled(streams.at_intervals(3)), stream)
    calls = 0
    for number, (before, after, metrics) in enumerate(zip(states, states[1:], found, strict=False)):
        x, params = stream["x"][number : number + 1], jax.tree.map(np.asarray, before.student.params)
        np.testing.assert_allclose(metrics["shown"].sum, (x @ params["a"] * params["b"])[0], rtol=1e-5)
        expected, count = dict(params), 0
        if number % 3 == 0:
            calls += 1
            np.testing.assert_allclose(metrics["loss"].sum, reference(expected, x)[0], rtol=1e-5)
            for _ in range(UPDATES):
                loss, gradient = reference(expected, x)
                if loss <= THRESHOLD:
                    break
                expected = {name: expected[name] - RATE * gradient[name] for name in expected}
                count += 1
        else:
            assert metrics["loss"].count == metrics["objective"].count == 0
        assert (metrics["key_frames"].sum, metrics["updates"].sum) == (number % 3 == 0, count)
        for name, value in expected.items():
            np.testing.assert_allclose(after.student.params[name], value, rtol=1e-5, atol=1e-6)
        own = after.opt_state["stream"]
        assert (int(own["frames"]), int(own["teacher_calls"])) == (number + 1, calls)
    counts = [int(metrics["updates"].sum) for metrics in found]
    assert counts[0] == UPDATES and sum(counts) == int(own["updates"]) and len(set(counts)) > 1


def test_the_teacher_runs_on_key_frames_only():
    ran = []

    def forward(params, x):
        jax.debug.callback(lambda: ran.append(None))
        return x @ params["a"]

    counted = teachers.frozen(adapters.plain(lambda key, x: TAUGHT.params, forward, inputs="x"), TAUGHT)
    states, found = run(distilled(streams.at_random(0.4), teacher=counted), frames(12))
    jax.effects_barrier()
    calls = int(states[-1].opt_state["stream"]["teacher_calls"])
    assert 0 < calls < 12 and len(ran) == calls == sum(metrics["key_frames"].sum for metrics in found)


@pytest.mark.parametrize("never", [streams.at_random(0.0), streams.at_intervals(1)], ids=["never asked", "never above"])
def test_a_student_that_is_never_updated_is_the_student_alone(never):
    stream, threshold = frames(4), 1e9
    states, found = run(distilled(never, optimizer=optax.adamw(0.1), threshold=threshold), stream)
    tiny.assert_equal(states[-1].student, states[0].student)
    tiny.assert_equal(states[-1].opt_state["student"], states[0].opt_state["student"])
    alone = jax.jit(lambda x: linear.apply(states[0].student, {"x": x}, key=None, train=False)[0]["logits"])
    for number, metrics in enumerate(found):
        np.testing.assert_array_equal(metrics["shown"].sum, alone(frame(stream, number)["x"])[0])


@pytest.mark.slow
def test_a_new_clip_begins_with_the_student_of_the_first_frame():
    kd = distilled(streams.at_intervals(2), optimizer=optax.adam(RATE), reset="clip")
    stream = frames(9)
    first = kd.init(jax.random.key(0), frame(stream, 0))
    trained = jaxkd.Variables(jax.tree.map(lambda x: x + 1, first.student.params))  # set after `init`
    states, found = run(kd, stream, first._replace(student=trained))
    for begin in (3, 6):
        clip = {name: x[begin : begin + 3] for name, x in stream.items()}
        own, _ = run(kd, clip, first._replace(student=trained))
        # The step is part of the state, and only of it.
        tiny.assert_equal(states[begin + 3].student, own[-1].student)
        tiny.assert_equal(states[begin + 3].opt_state["student"], own[-1].opt_state["student"])
    assert [metrics["key_frames"].sum for metrics in found] == [1, 0, 1] * 3
    assert not np.array_equal(states[3].student.params["a"], trained.params["a"])


@pytest.mark.slow
def test_a_masked_frame_changes_nothing():
    kd = distilled(streams.on_change("student/feature", threshold=0.1), reset="clip")
    stream = frames(4)
    whole = {**stream, "mask": np.ones(4, bool)}
    more = {name: np.insert(x, 2, x[2], axis=0) for name, x in whole.items()}
    more["x"][2], more["clip"][2], more["mask"][2] = np.nan, 7, False
    expected, _ = run(kd, whole)
    states, found = run(kd, more)
    tiny.assert_equal(states[-1]._replace(step=expected[-1].step), expected[-1])
    assert not any(found[2][name].count for name in ("loss", "key_frames", "updates"))


def test_only_chosen_parameters_adapt():
    student = wrappers.freeze(linear, "^a")
    states, _ = run(distilled(streams.at_intervals(1), student=student), frames(3))
    first, last = (wrappers.unfreeze(state.student).params for state in (states[0], states[-1]))
    np.testing.assert_array_equal(first["a"], last["a"])
    assert (first["b"] != last["b"]).all() and set(states[0].opt_state["stream"]) == {
        *("rule", "frames", "teacher_calls", "updates")
    }


@pytest.mark.slow
def test_several_streams_have_a_student_each():
    kd, parts = distilled(streams.at_random(0.5), optimizer=optax.adam(RATE)), [frames(4, 1), frames(4, 2)]
    keys = jax.random.split(jax.random.key(5), 2)
    state = jax.vmap(lambda key: kd.init(key, frame(parts[0], 0)))(keys)
    step = jax.jit(jax.vmap(kd.step))
    for number in range(4):
        batch = jax.tree.map(lambda *x: np.stack(x), *(frame(part, number) for part in parts))
        state, _ = step(state, batch)
    for i, part in enumerate(parts):
        alone, _ = run(kd, part, kd.init(keys[i], frame(part, 0)))
        tiny.assert_close(jax.tree.map(lambda x: x[i], state.student), alone[-1].student)  # noqa: B023


@pytest.mark.slow
def test_a_killed_run_resumes_in_the_middle_of_a_stream(tmp_path):
    rule = streams.as_predicted(selector(), "student/feature", threshold=0.45)
    kd = distilled(rule, optimizer=optax.adam(RATE), reset="clip", train_metrics=None)
    loader = data.Resident({**frames(9), "index": np.arange(9, dtype=np.int32)}, 1, shuffle=False)
    settings = {"steps": 9, "key": jax.random.key(3), "log_every": 5, "progress": False}
    whole = fit(kd, loader, **settings)

    class Killed(Exception):
        pass

    def die(row):
        raise Killed

    with pytest.raises(Killed):
        fit(kd, loader, directory=tmp_path, checkpoint_every=4, on_row=die, **settings)
    parts = fit(kd, loader, directory=tmp_path, checkpoint_every=4, **settings)
    tiny.assert_equal(parts.state, whole.state)
    assert 0 < int(whole.state.opt_state["stream"]["teacher_calls"]) < 9


def selector():
    params = streams.init_selector(jax.random.key(1), 3, hidden_size=4)
    return {**params, "output": jnp.linspace(-1.0, 1.0, 4)}


@pytest.mark.slow
def test_what_is_learned_by_the_objective_adapts_too():
    learned = jaxkd.objectives.hint("student/feature", "teacher/logits")
    kd = streams.key_frames(
        linear,
        teachers.frozen(linear, TAUGHT),
        learned,
        streams.at_intervals(2),
        optimizer=optax.sgd(0.0),
        objective_optimizer=optax.sgd(0.1),
        threshold=0.0,
        metrics=(),
    )
    states, _ = run(kd, frames(3))
    moved = [
        any(bool((x != y).any()) for x, y in zip(*map(jax.tree.leaves, pair), strict=True))
        for pair in zip(*([s.objective.params for s in part] for part in (states, states[1:])), strict=False)
    ]
    assert moved == [True, False, True]
    tiny.assert_equal(states[-1].student, states[0].student)


@pytest.mark.slow
def test_evaluation_is_that_of_a_distillation():
    kd = distilled(streams.at_intervals(1))
    states, _ = run(kd, frames(2))
    other = jaxkd.distill(linear, teachers.frozen(linear, TAUGHT), MSE, optimizer=optax.sgd(RATE), metrics=())
    batch = frames(4)
    state = other.init(jax.random.key(0), batch)._replace(student=states[-1].student)
    assert tiny.numbers(kd.evaluate(states[-1], batch)) == tiny.numbers(other.evaluate(state, batch))


def test_what_does_not_fit_is_refused():
    kd, key = distilled(streams.at_intervals(1)), jax.random.key(0)
    with pytest.raises(TypeError, match="rule: expected a KeyFrameRule, such as"):
        distilled(lambda state: True)
    with pytest.raises(ValueError, match="updates: expected at least 1"):
        distilled(streams.at_intervals(1), updates=0)
    with pytest.raises(ValueError, match=r"one frame, arrays \[1, ...\], got 2 examples. Each stream has a student"):
        kd.init(key, frames(2))
    state = kd.init(key, frames(1))
    with pytest.raises(ValueError, match="got 2 examples"):
        kd.step(state, frames(2))
    with pytest.raises(ValueError, match="no such name"):
        distilled(streams.at_intervals(1), reset="scene").init(key, frames(1))
    with pytest.raises(ValueError, match=r"reset: expected one number \[1\], got float32\[1, 3\]"):
        distilled(streams.at_intervals(1), reset="x").init(key, frames(1))
    split = functools.partial(jax.pmap, axis_name=jaxkd.DATA_AXIS, in_axes=(None, 0))(kd.step)
    with pytest.raises(ValueError, match="expected one device"):
        jax.eval_shape(split, state, jax.tree.map(lambda x: x[:, None], frames(2)))
