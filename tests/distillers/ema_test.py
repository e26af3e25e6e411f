"""Moving average of the student: float64 reference, one program with training, devices, resuming."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, distillers, losses, objectives, schemes, term, training
from jaxkd._core import moving_average
from tests import tiny
from tests.training import toy

OBJECTIVE = combine(
    ce=term(losses.cross_entropy, "student/logits", "batch/label"),
    kd=term(losses.soft_target_kl, "student/logits", "teacher/logits"),
)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(nn.Dense(5)(x.reshape(x.shape[0], -1)))
        return nn.Dense(tiny.CLASSES)(x)


NET = jaxkd.adapters.linen(Net())
SGD = optax.sgd(0.5, momentum=0.9)


def distiller(model=tiny.student, **settings):
    return distillers.with_ema(jaxkd.distill(model, tiny.teacher(), OBJECTIVE, optimizer=SGD), **settings)


def test_average_equals_its_float64_reference_and_leaves_training_unchanged():
    schedule = moving_average.ema_warmup(0.3)
    kd, plain = distiller(NET, decay=schedule), jaxkd.distill(NET, tiny.teacher(), OBJECTIVE, optimizer=SGD)
    state, alone = (one.init(jax.random.key(0), tiny.batch(8)) for one in (kd, plain))
    exact = jax.tree.map(lambda x: np.asarray(x, np.float64), state.student)
    tiny.assert_equal(distillers.ema_params(state), state.student)
    step, step_alone = jax.jit(kd.step, donate_argnums=0), jax.jit(plain.step)
    for number in range(5):
        state, metrics = step(state, tiny.batch(8, number))
        alone, expected = step_alone(alone, tiny.batch(8, number))
        share = min(0.3, (1 + number) / (10 + number))
        exact = jax.tree.map(lambda a, s, share=share: share * a + (1 - share) * np.asarray(s), exact, alone.student)
    tiny.assert_close(distillers.ema_params(state), exact, rtol=1e-5, atol=1e-6)
    tiny.assert_close(state.student, alone.student)
    tiny.assert_close(dict(metrics), dict(expected))
    gap = np.abs(exact.params["Dense_0"]["kernel"] - np.asarray(alone.student.params["Dense_0"]["kernel"])).max()
    assert gap > 1e-3  # far above the tolerance


def test_decay_of_zero_and_one():
    for decay, kept in ((0.0, 1), (1.0, 0)):
        kd = distiller(NET, decay=decay)
        states = [kd.init(jax.random.key(0), tiny.batch(8))]
        states.append(jax.jit(kd.step)(states[0], tiny.batch(8))[0])
        tiny.assert_equal(distillers.ema_params(states[1]), states[kept].student)


def test_evaluate_reports_student_and_average():
    kd = distiller(decay=0.9)
    state, _ = jax.jit(kd.step)(kd.init(jax.random.key(0), tiny.batch(8)), tiny.batch(8))
    found = tiny.numbers(jax.jit(kd.evaluate)(state, tiny.batch(8, 1)))
    plain = jaxkd.distill(tiny.student, tiny.teacher(), OBJECTIVE, optimizer=SGD)
    alone = {key: value for key, value in state.opt_state.items() if key != "average"}
    of_student = tiny.numbers(plain.evaluate(state._replace(opt_state=alone), tiny.batch(8, 1)))
    average = state._replace(opt_state=alone, student=distillers.ema_params(state))
    of_average = tiny.numbers(plain.evaluate(average, tiny.batch(8, 1)))
    expected = of_student | {f"average/{name}": value for name, value in of_average.items()}
    assert found == pytest.approx(expected, rel=1e-5)
    assert found["average/loss"] != found["loss"]


@pytest.mark.parametrize("place", ["shard", pytest.param("pmap", marks=pytest.mark.slow)])
def test_average_does_not_depend_on_the_devices(place):
    kd = distiller(decay=0.5)
    start = kd.init(jax.random.key(0), tiny.batch(8))
    placed = {
        "pmap": lambda: jaxkd.parallel.pmap(kd, jax.devices()[:4]),
        "shard": lambda: jaxkd.parallel.shard(kd, jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))),
    }[place]()
    state, expected, step = jax.tree.map(jnp.copy, start), start, jax.jit(kd.step)
    for number, size in enumerate((8, 6)):
        state, _ = placed.step(state, tiny.batch(size, number))
        expected, _ = step(expected, tiny.batch(size, number))
    tiny.assert_close(distillers.ema_params(state), distillers.ema_params(expected), rtol=1e-4, atol=1e-5)


def test_bfloat16_parameters_have_a_float32_average():
    def cast(model):
        init = lambda key, batch: jax.tree.map(lambda x: x.astype(jnp.bfloat16), model.init(key, batch))  # noqa: E731
        return model._replace(init=init)

    kd = distiller(cast(tiny.student), decay=0.999)
    state, _ = jax.jit(kd.step)(kd.init(jax.random.key(0), tiny.batch(8)), tiny.batch(8))
    dtypes = [{x.dtype.name for x in jax.tree.leaves(t)} for t in (state.opt_state["average"], state.student)]
    assert dtypes == [{"float32"}, {"bfloat16"}]
    assert {x.dtype.name for x in jax.tree.leaves(distillers.ema_params(state))} == {"bfloat16"}


def test_resumed_run_has_the_same_average(tmp_path):
    kd = distillers.with_ema(toy.toy(), decay=moving_average.ema_warmup(0.9))
    settings = toy.SETTINGS | {"eval_data": toy.VAL, "key": jax.random.key(1), "steps": 24, "best": "eval/average/loss"}
    settings |= {"best_mode": "min"}
    straight = training.fit(kd, toy.TRAIN, directory=tmp_path / "straight", **settings)
    with pytest.raises(toy.Died):
        stop = toy.raising(12, toy.Died())
        training.fit(kd, toy.TRAIN, directory=tmp_path / "broken", on_eval=stop, **settings)
    resumed = training.fit(kd, toy.TRAIN, directory=tmp_path / "broken", **settings)
    assert toy.bits(resumed.state) == toy.bits(straight.state)
    assert toy.timeless(resumed.history) == toy.timeless(straight.history) and resumed.best == straight.best


def test_average_of_a_scheme():
    stages = [
        schemes.phases.Stage(combine(hint=objectives.hint("student/vector", "teacher/vector")), SGD, steps=2),
        schemes.phases.Stage(OBJECTIVE, SGD),
    ]
    kd = distillers.with_ema(schemes.staged(tiny.student, tiny.teacher(), *stages), decay=0.0)
    state, step = kd.init(jax.random.key(0), tiny.batch(8)), jax.jit(kd.step)
    for _ in range(3):
        state, _ = step(state, tiny.batch(8))
    tiny.assert_equal(distillers.ema_params(state), state.student)
    assert "average/kd" in kd.evaluate(state, tiny.batch(8))


def test_invalid_uses_are_refused():
    kd = distiller()
    state = jaxkd.distill(tiny.student, tiny.teacher(), OBJECTIVE, optimizer=SGD).init(jax.random.key(0), tiny.batch(8))
    with pytest.raises(ValueError, match=r"with_ema: the state has no opt_state\['average'\]"):
        kd.step(state, tiny.batch(8))
    with pytest.raises(ValueError, match="ema_params: the state has no"):
        distillers.ema_params(state)
    with pytest.raises(ValueError, match="with_ema: opt_state has 'average' already"):
        distillers.with_ema(kd).init(jax.random.key(0), tiny.batch(8))
    with pytest.raises(
        TypeError, match=r"with_ema: expected a state whose opt_state is a dict, to which .* can be added, got tuple"
    ):
        kd = toy.toy()
        flat = kd._replace(init=lambda key, batch: kd.init(key, batch)._replace(opt_state=()))
        distillers.with_ema(flat).init(jax.random.key(0), {"x": jnp.ones((2, 5))})
