"""`skip_nonfinite`: skipped steps leave the state unmodified, on all devices, and are counted and limited."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, distillers, losses, objectives, teachers, term, training
from jaxkd.types import DATA_AXIS
from tests import tiny
from tests.training import toy

LABELS = np.arange(tiny.DATA) % tiny.CLASSES
OBJECTIVE = combine(
    ce=term(losses.cross_entropy, "student/logits", "batch/label"),
    kd=term(losses.soft_target_kl, "student/logits", "teacher/logits"),
)
REMEMBERING = combine(
    objective=OBJECTIVE,
    crd=objectives.crd("student/vector", "teacher/0/vector", LABELS, negatives=4, embedding_size=3),
)


class Net(nn.Module):
    """A distiller with state that a bad batch would affect, and a PRNG key in it."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(5)(x.reshape(x.shape[0], -1)))
        return nn.Dense(tiny.CLASSES)(nn.Dropout(0.2, deterministic=not train)(x))


NET = jaxkd.adapters.linen(Net(), taps={"vector": "Dense_0"})


def poisoned(size, number=0):
    """A batch with NaN in one pixel of the last example."""
    batch = tiny.batch(size, number)
    batch["image"][-1, 0, 0, 0] = np.nan
    return batch


def distiller():
    teacher = teachers.ensemble([tiny.teacher(), teachers.ema(NET)])
    return jaxkd.distill(NET, teacher, REMEMBERING, optimizer=optax.adam(0.01))


def without(state):
    """The state without the step number and the counts."""
    rest = {name: value for name, value in state.opt_state.items() if name != "skipped"}
    return state._replace(step=jnp.int32(0), opt_state=rest)


def counts(state):
    return int(state.step), {name: int(count) for name, count in state.opt_state["skipped"].items()}


@pytest.mark.slow
def test_bad_step_leaves_the_state_unmodified_and_good_steps_are_unaffected():
    plain = distiller()
    kd = distillers.skip_nonfinite(plain)
    step = jax.jit(kd.step, donate_argnums=0)
    state = kd.init(jax.random.key(0), tiny.batch(8))
    # CRD's constants are infinite before the first step, which is not an error.
    state, metrics = step(state, tiny.batch(8))
    expected, _ = jax.jit(plain.step)(plain.init(jax.random.key(0), tiny.batch(8)), tiny.batch(8))
    tiny.assert_close(without(state), expected._replace(step=jnp.int32(0)))
    assert counts(state) == (1, {"in_a_row": 0, "total": 0})
    assert tiny.numbers(metrics)["skipped"] == 0 and tiny.numbers(metrics)["loss"] > 0

    before = jax.tree.map(jnp.copy, state)
    bad, metrics = step(state, poisoned(8, 1))
    tiny.assert_equal(without(bad), without(before))
    assert counts(bad) == (2, {"in_a_row": 1, "total": 1})
    assert (float(metrics["skipped"].sum), float(metrics["skipped"].count)) == (1, 1)
    others = [mean for name, mean in metrics.items() if name != "skipped"]
    assert len(others) > 5 and not any(float(x) for mean in others for x in mean)

    good, _ = step(bad, tiny.batch(8, 2))
    assert counts(good) == (3, {"in_a_row": 0, "total": 1})
    assert not np.array_equal(good.student.params["Dense_0"]["kernel"], before.student.params["Dense_0"]["kernel"])


def test_nonfinite_gradient_of_a_finite_loss_is_skipped():
    """The loss is 0 and its derivative NaN, which only the next loss would show."""
    model = jaxkd.adapters.plain(lambda key, x: jnp.zeros(2), lambda w, x: {"norm": jnp.sqrt(x @ w**2)}, inputs="x")
    objective = term(lambda norm: norm, "student/norm")
    kd = jaxkd.distill(model, teachers.none(), objective, optimizer=optax.sgd(0.1))
    batch = {"x": jnp.ones((3, 2))}
    state, metrics = kd.step(kd.init(jax.random.key(0), batch), batch)
    assert tiny.numbers(metrics)["loss"] == 0 and np.isnan(state.student.params).all()
    kd = distillers.skip_nonfinite(kd, limit=1)
    state, metrics = kd.step(kd.init(jax.random.key(0), batch), batch)
    np.testing.assert_array_equal(state.student.params, 0)
    assert tiny.numbers(metrics)["skipped"] == 1
    state, metrics = kd.step(state, batch)
    assert np.isnan(tiny.numbers(metrics)["loss"]) and np.isfinite(state.student.params).all()


def shard_mapped(kd, devices):
    from jax.sharding import Mesh, PartitionSpec

    mesh = Mesh(np.array(jax.devices()[:devices]), (DATA_AXIS,))
    specs = {"in_specs": (PartitionSpec(), PartitionSpec(DATA_AXIS)), "out_specs": PartitionSpec()}
    return jax.jit(jax.shard_map(kd.step, mesh=mesh, **specs))


PLACES = {
    "pmap": lambda kd: jaxkd.parallel.pmap(kd, jax.devices()[:4]).step,
    "shard": lambda kd: jaxkd.parallel.shard(kd, jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))).step,
    "shard_map": lambda kd: shard_mapped(kd, 4),
}


@pytest.mark.parametrize("place", ["shard", "shard_map", pytest.param("pmap", marks=pytest.mark.slow)])
def test_all_devices_skip_a_step_if_one_has_a_bad_example(place):
    kd = distillers.skip_nonfinite(jaxkd.distill(tiny.student, tiny.teacher(), OBJECTIVE, optimizer=optax.adam(0.01)))
    start = kd.init(jax.random.key(0), tiny.batch(8))
    step, by_jit = PLACES[place](kd), jax.jit(kd.step)
    state, expected = jax.tree.map(jnp.copy, start), start
    for batch in (tiny.batch(8), poisoned(8, 1), tiny.batch(8, 2)):
        state, metrics = step(state, batch)
        expected, found = by_jit(expected, batch)
        assert tiny.numbers(metrics)["skipped"] == tiny.numbers(found)["skipped"]
    tiny.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    assert counts(state) == (3, {"in_a_row": 0, "total": 1})


def test_run_continues_after_a_bad_batch_and_rows_count_good_steps():
    bad = toy.Resident(poison=7)
    kd = distillers.skip_nonfinite(toy.toy(), limit=1)
    settings = {"steps": 15, "log_every": 5, "chunk": 4, "progress": False, "key": jax.random.key(1)}
    result = training.fit(kd, bad, **settings)
    assert [row["train/skipped"] for row in result.history] == pytest.approx([0, 0.2, 0])
    assert all(np.isfinite(value) for row in result.history for value in row.values())
    # The row is the mean over the four good steps.
    state, found = kd.init(jax.random.key(1), bad.gather(bad.arrays, 0)), {}
    step = jax.jit(kd.step)
    for number in range(10):
        state, metrics = step(state, bad.gather(bad.arrays, number))
        if number >= 5 and number != 7:
            found = jaxkd.metrics.merge(found, metrics)
    assert result.history[1]["train/loss"] == pytest.approx(tiny.numbers(found)["loss"], rel=1e-5)


def test_too_many_consecutive_skips_end_the_run_with_a_finite_state(tmp_path):
    class Broken(toy.Resident):
        def gather(self, arrays, step):
            batch = super().gather(arrays, step)
            return batch | {"y": jnp.where(jnp.int32(step) >= 6, jnp.nan, batch["y"])}

    kd, broken = distillers.skip_nonfinite(toy.toy(), limit=3), Broken()
    settings = {"steps": 40, "log_every": 5, "chunk": 4, "progress": False, "checkpoint_every": 4}
    with pytest.raises(training.NonFiniteError, match=r"update 10: .*'loss' is nan") as error:
        training.fit(kd, broken, key=jax.random.key(1), directory=tmp_path, **settings)
    assert error.value.step == 10  # steps 7, 8 and 9 were skipped
    with training.Checkpoints(tmp_path / "checkpoints") as checkpoints:
        saved = checkpoints.restore(kd.init(jax.random.key(1), broken.gather(broken.arrays, 0))).state
    assert counts(saved) == (8, {"in_a_row": 2, "total": 2})
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(saved.student))


def test_invalid_uses_are_refused():
    kd = toy.toy()
    with pytest.raises(ValueError, match="skip_nonfinite, limit: expected a positive number of steps in a row, got 0"):
        distillers.skip_nonfinite(kd, limit=0)
    state = kd.init(jax.random.key(0), {"x": jnp.ones((2, 5))})
    with pytest.raises(ValueError, match=r"skip_nonfinite: the state has no opt_state\['skipped'\]"):
        distillers.skip_nonfinite(kd).evaluate(state, {})
