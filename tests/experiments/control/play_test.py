"""CartPole with tiny policies: every method builds, learns, resumes and is exported."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxkd
from experiments.control import acting, games, main, networks, play
from jaxkd import parallel, training, weights
from tests import tiny

pytest.importorskip("gymnax", reason="needs gymnax, which does not permit every version of JAX: pip install gymnax six")

CONFIG = types.SimpleNamespace(steps=4)


@pytest.fixture
def work(monkeypatch, tmp_path):
    """Returns a task whose teachers have random weights."""
    for name, value in {"ROWS": 4, "STEPS": 3, "UPDATES": 2, "STORED": 8, "EPISODES": 3, "WATCHED": 2}.items():
        monkeypatch.setattr(play, name, value)
    monkeypatch.setitem(play.SPECS, "cartpole", play.Spec("CartPole-v1", (6, 6), 2))
    monkeypatch.setattr(play, "SIZES", {"": 2, "_small": 3})
    opened = play.Play(CONFIG, tmp_path / "cartpole" / "prepared", ("cartpole",))
    taught = opened._teacher.init(jax.random.key(3), {"observation_cartpole": jnp.zeros((1, 4))})
    opened._taught = jax.tree.map(lambda x: x + 0.5, taught)  # a policy begins with nearly equal logits
    opened._taught.params["cartpole"]["policy_cartpole"]["bias"] += jnp.array([1.0, -1.0])
    return opened


def traced(training):
    """Returns the shapes of the state after a step, and of its metrics."""
    batch = next(iter(training.inputs.batches()))
    return jax.eval_shape(training.kd.step, jax.eval_shape(training.kd.init, jax.random.key(0), batch), batch)


@functools.cache
def cartpole():
    return {"cartpole": games.make("CartPole-v1")}


@pytest.mark.parametrize(
    "method", [name if name == "kickstart" else pytest.param(name, marks=pytest.mark.slow) for name in play.METHODS]
)
def test_a_method_builds(work, method):
    state, metrics = traced(work.training(method, 0, 8))
    assert ("kd_cartpole" in metrics) == (method != "student")
    assert ("policy_cartpole" in metrics) == (method in ("student", "kickstart"))
    assert ("carried" in state.opt_state) == (method != "kl_stored")
    assert jax.tree.structure(state.teacher) == jax.tree.structure({} if method == "student" else work._taught)


@pytest.mark.slow
def test_kickstarting_ends_with_reinforcement_learning_alone(work):
    made = work.training("kickstart", 0, 4)
    state, step = made.kd.init(jax.random.key(0), batch := next(iter(made.inputs.batches()))), jax.jit(made.kd.step)
    found = []
    for _ in range(4):
        state, metrics = step(state, batch)
        found.append(tiny.numbers(metrics))
    assert [one["kd_cartpole/weight"] for one in found] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert all(np.isfinite(one["loss"]) for one in found)
    measured = tiny.numbers(jax.jit(made.kd.evaluate)(state, next(iter(made.splits["validation"].batches()))))
    assert measured["return_cartpole"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["kl", "kl_teacher", "kl_stored"])
def test_students_are_measured(work, method):
    made = work.training(method, 0, 4)
    batches = iter(made.inputs.batches())
    state, step = made.kd.init(jax.random.key(0), next(batches)), jax.jit(made.kd.step)
    losses = []
    for _ in range(60):
        state, metrics = step(state, next(batches))
        losses.append(tiny.numbers(metrics)["kd_cartpole"])
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    found = work.measure(method, 0, state)
    assert 0 <= found["agreement_cartpole"] <= 1 and 0 <= found["teacher_agreement_cartpole"] <= 1
    assert found["score"] == pytest.approx(found["return_cartpole"] / work._returns["cartpole"])
    assert work.samples(method, state) == []
    reference = work.references()["teacher"]
    assert reference["score"] == 1 and reference["agreement_cartpole"] == 1


@pytest.mark.slow
def test_a_killed_training_resumes_in_the_middle_of_its_episodes(work, tmp_path):
    made = work.training("kickstart", 0, 6)
    settings = {"steps": 6, "key": jax.random.key(1), "eval_data": made.splits["validation"], "eval_every": 3}
    whole = training.fit(made.kd, made.inputs, progress=False, **settings)

    class Killed(Exception):
        pass

    def die(step, metrics, state):
        raise Killed

    with pytest.raises(Killed):
        training.fit(made.kd, made.inputs, directory=tmp_path / "run", on_eval=die, progress=False, **settings)
    again = work.training("kickstart", 0, 6)
    resumed = training.fit(again.kd, again.inputs, directory=tmp_path / "run", progress=False, **settings)
    tiny.assert_equal(resumed.state, whole.state)
    assert int(jnp.max(whole.state.opt_state["carried"]["cartpole"]["game"].time)) > 0


@pytest.mark.slow
def test_devices_do_not_matter(work):
    made = work.training("kickstart", 0, 6)
    batch = next(iter(made.inputs.batches()))
    state = made.kd.init(jax.random.key(0), batch)
    mesh = Mesh(np.array(jax.devices()[:2]), (jaxkd.DATA_AXIS,))
    shard, step = parallel.shard(made.kd, mesh, replicas=1), jax.jit(made.kd.step)
    other = jax.tree.map(jnp.copy, state)
    for _ in range(2):
        state, metrics = step(state, batch)
        other, found = shard(other, batch)
        assert tiny.numbers(found) == pytest.approx(tiny.numbers(metrics), rel=1e-3, abs=1e-5)
    tiny.assert_close(other, state, rtol=1e-3, atol=1e-5)


def test_an_exported_student_plays_the_same_episode(tmp_path):
    one, game = cartpole(), cartpole()["cartpole"]
    model = networks.policy(one, (5, 5))
    variables = model.init(jax.random.key(0), {"observation_cartpole": jnp.zeros((1, 4))})
    variables = variables._replace(params=jax.tree.map(lambda x: x + 0.1, variables.params))
    path = tmp_path / "student.jax"
    weights.save_program(
        path, model, variables, {"observation_cartpole": jnp.zeros((1, 4))}, output_names=("logits_cartpole",)
    )
    program = weights.load_program(path)
    keys = jax.random.split(jax.random.key(0), 1)
    play_on = jax.jit(lambda state, number: game.step(jax.random.split(jax.random.key(number), 1), *state))
    actions = {}
    for name, served in {
        "model": jax.jit(lambda batch: model.apply(variables, batch, key=None, train=False)[0]),
        "program": program.call,
    }.items():
        state, done, actions[name] = game.begin(keys), False, []
        while not done:
            outputs = served({"observation_cartpole": state["observation"]})
            action = jnp.argmax(outputs["logits_cartpole"], axis=-1)
            state, _, ended = play_on((state, action), len(actions[name]))
            actions[name].append(int(action[0]))
            done = bool(ended[0])
    assert actions["program"] == actions["model"] and len(actions["model"]) > 5


def test_episodes_end_once():
    model = networks.policy(cartpole(), (5, 5))
    variables = model.init(jax.random.key(0), {"observation_cartpole": jnp.zeros((1, 4))})
    keys = jax.random.split(jax.random.key(1), 4)
    found = jax.jit(lambda v: acting.episodes(cartpole(), model, v, keys))(variables)
    np.testing.assert_array_equal(found["return_cartpole"], found["length_cartpole"])  # a step is worth 1
    np.testing.assert_array_equal(found["agreed_cartpole"], found["length_cartpole"])  # it agrees with itself
    assert len(set(np.asarray(found["length_cartpole"]).tolist())) > 1 and (found["length_cartpole"] >= 8).all()


def test_widths_fit_the_budget():
    budget = networks.size(cartpole(), (64, 64)) / 10
    features = networks.features_of(cartpole(), budget)
    assert networks.size(cartpole(), features) <= budget < networks.size(cartpole(), (features[0] + 1,) * 2)
    # 4 inputs, 2 hidden layers, 2 actions and the value, with biases
    assert networks.size(cartpole(), (3, 3)) == 4 * 3 + 3 + 3 * 3 + 3 + 3 * 3 + 3
    small = games.Game("a", (2, 2, 3), 4, None, None), games.Game("b", (2, 2, 1), 2, None, None)
    both = dict(zip(("a", "b"), small, strict=True))
    batch = {f"observation_{name}": jnp.zeros((1, *game.shape)) for name, game in both.items()}
    made = jax.eval_shape(lambda key: networks.policy(both, (5, 4)).init(key, batch).params, jax.random.key(0))
    assert networks.size(both, (5, 4)) == sum(x.size for x in jax.tree.leaves(made))
    with pytest.raises(ValueError, match="fields of one size"):
        networks.size({"a": small[0], "b": small[1]._replace(shape=(3, 2, 1))}, (5,))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["breakout", "space_invaders"])
def test_games_of_minatar_are_drawn(name):
    one = {name: games.make(play.SPECS[name].id)}
    model = networks.policy(one, (4,))
    batch = {f"observation_{name}": jnp.zeros((1, *one[name].shape))}
    observations, length = play.first_episode(one, name, model, model.init(jax.random.key(0), batch), steps=30)
    assert observations.shape == (30, *one[name].shape) and 0 < length <= 30
    found = play.boards.lines(f"{name}, student", observations, length)
    assert all(play.boards.LINE.fullmatch(line) for line in found)


@pytest.mark.slow
def test_a_student_of_two_games(work, monkeypatch, tmp_path):
    monkeypatch.setitem(play.SPECS, "other", play.Spec("MountainCar-v0", (5, 5), 2))
    both = play.Play(CONFIG, tmp_path / "both" / "prepared", ("cartpole", "other"))
    batch = {"observation_cartpole": jnp.zeros((1, 4)), "observation_other": jnp.zeros((1, 2))}
    both._taught = both._teacher.init(jax.random.key(3), batch)
    both._returns = {"cartpole": 10.0, "other": -200.0}
    made = both.training("kl", 0, 4)
    state = made.kd.init(jax.random.key(0), batch := next(iter(made.inputs.batches())))
    state, metrics = jax.jit(made.kd.step)(state, batch)
    assert {"kd_cartpole", "kd_other"} <= set(metrics) and set(state.opt_state["carried"]) == {"cartpole", "other"}
    found = both.measure("kl", 0, state)
    assert found["score"] == pytest.approx((found["return_cartpole"] / 10 - found["return_other"] / 200) / 2)


@pytest.mark.slow
def test_the_short_teacher_of_a_trial_is_not_that_of_a_game(work, monkeypatch, tmp_path):
    monkeypatch.setitem(play.SPECS, "cartpole", play.Spec("CartPole-v1", (6, 6), 12))
    for steps, name in ((1, "teacher10"), (2, "teacher")):
        folder = tmp_path / "cartpole" / "prepared"
        play.Play(types.SimpleNamespace(steps=steps), folder, ("cartpole",))._expert("cartpole")
        assert (folder / f"{name}.safetensors").exists()


@pytest.mark.slow
def test_the_command_trains_a_teacher_once_and_reports(work, monkeypatch, tmp_path):
    task = main.TASKS["cartpole"]
    arguments = ["cartpole", "--out", str(tmp_path), "--steps", "2", "--seeds", "2", "--methods", "kl"]
    monkeypatch.setattr(main, "TASKS", {"cartpole": task})
    assert main.cli(arguments) == 0
    folder = tmp_path / "control" / "cartpole"
    assert (folder / "prepared" / "teacher.safetensors").exists()
    page = (folder / "report.md").read_text()
    assert "KL, student's states" in page and "environment steps a second" in page and "equal FLOPs" not in page


def test_methods_are_compared_with_the_student_alone_of_their_size():
    found = main.TASKS["breakout"].methods
    assert len(found) == 2 * len(play.METHODS)
    assert {method.baseline for method in found.values()} == {"student", "student_small"}
    assert found["kl_small"].baseline == "student_small"
    assert set(play.LOSSES) == set(play.METHODS) - {"student"}
    assert play.parts("kl_teacher_small") == ("kl_teacher", "_small") and play.parts("kl") == ("kl", "")


def test_losses_of_rusu():
    student, teacher = jnp.array([[1.0, 0.0, 0.0]]), jnp.array([[0.0, 0.02, 0.01]])
    p = np.exp([0.0, 2.0, 1.0]) / np.exp([0.0, 2.0, 1.0]).sum()
    log_q = np.array([1.0, 0.0, 0.0]) - np.log(np.e + 2)
    np.testing.assert_allclose(
        play.sharp_kl(student, teacher, temperature=0.01), [(p * (np.log(p) - log_q)).sum()], 1e-5
    )
    np.testing.assert_allclose(play.best_action(student, teacher), [-log_q[1]], rtol=1e-5)
