"""`distill` against a step written by hand, its errors at `init`, metrics, and communication between devices."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, losses, objectives, term
from jaxkd.metrics import from_values
from tests import tiny

KD = term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.9, temperature=4.0)
OBJECTIVE = combine(
    ce=term(losses.cross_entropy, "student/logits", "batch/label", weight=0.1),
    kd=KD,
    hint=objectives.hint("student/vector", "teacher/vector", weight=2.0),
)


def test_step_equals_one_written_by_hand():
    optimizer, objective_optimizer = optax.adam(1e-2), optax.sgd(0.1, momentum=0.9)
    kd = jaxkd.distill(
        tiny.student, tiny.teacher(), OBJECTIVE, optimizer=optimizer, objective_optimizer=objective_optimizer
    )
    state = kd.init(jax.random.key(0), tiny.batch(8))
    taught = tiny.teacher_variables()

    @jax.jit
    def by_hand(params, regressor, slots, batch):
        target, _ = tiny.teacher_model.apply(taught, batch, key=None, train=False)

        def loss(params, regressor):
            out, _ = tiny.student.apply(jaxkd.Variables(params), batch, key=None, train=True)
            ce = optax.softmax_cross_entropy_with_integer_labels(out["logits"], batch["label"]).mean()
            teacher, student = (jax.nn.log_softmax(x["logits"] / 4.0) for x in (target, out))
            kl = 16.0 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1).mean()
            mapped = out["vector"] @ regressor["kernel"] + regressor["bias"].reshape(1, -1)
            return 0.1 * ce + 0.9 * kl + 2.0 * jnp.mean((mapped - target["vector"]) ** 2)

        value, grads = jax.value_and_grad(loss, (0, 1))(params, regressor)
        first, one = optimizer.update(grads[0], slots[0], params)
        second, two = objective_optimizer.update(grads[1], slots[1], regressor)
        return optax.apply_updates(params, first), optax.apply_updates(regressor, second), (one, two), value

    params, regressor = state.student.params, state.objective.params["hint"]
    slots = optimizer.init(params), objective_optimizer.init(regressor)
    step = jax.jit(kd.step)
    for seed in range(5):
        state, metrics = step(state, tiny.batch(8, seed))
        params, regressor, slots, value = by_hand(params, regressor, slots, tiny.batch(8, seed))
        assert tiny.numbers(metrics)["loss"] == pytest.approx(float(value), rel=1e-5)
    tiny.assert_close(state.student.params, params)
    tiny.assert_close(state.objective.params["hint"], regressor)


def test_unknown_path_is_an_error_of_init():
    objective = combine(kd=term(losses.logit_mse, "student/logits", "teacher/logit"))
    kd = jaxkd.distill(tiny.student, tiny.teacher(), objective, optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match=r"'teacher/logit'.*did you mean 'logits'.*'map' float32\[8, 2, 2, 5\]"):
        kd.init(jax.random.key(0), tiny.batch(8))


def test_an_entry_that_evaluation_batches_lack_is_an_error_that_says_so():
    masked = term(losses.cross_entropy, "student/logits", "batch/label", where="batch/labeled")
    kd = jaxkd.distill(tiny.student, tiny.teacher(), masked, optimizer=optax.sgd(0.1))
    state = jax.eval_shape(kd.init, jax.random.key(0), {**tiny.batch(4), "labeled": jnp.ones(4, bool)})
    with pytest.raises(ValueError, match="'labeled': there is no such name") as error:
        jax.eval_shape(kd.evaluate, state, tiny.batch(4))
    assert any("in the evaluation, whose batches need every entry" in note for note in error.value.__notes__)


def test_user_defined_metrics():
    def train_metrics(context):
        return {"largest": from_values(jnp.max(context.student["logits"], axis=-1), context.batch.get("mask"))}

    kd = jaxkd.distill(
        tiny.student, tiny.teacher(), combine(kd=KD), optimizer=optax.sgd(0.1), train_metrics=train_metrics
    )
    state = kd.init(jax.random.key(0), tiny.batch(8))
    _, reported = jax.jit(kd.step)(state, tiny.batch(8))
    out, _ = tiny.student.apply(state.student, tiny.batch(8), key=None, train=True)
    assert tiny.numbers(reported)["largest"] == pytest.approx(float(out["logits"].max(axis=-1).mean()), rel=1e-5)
    assert "largest" not in jax.eval_shape(kd.evaluate, state, tiny.batch(8))


@pytest.mark.parametrize("name", ["loss", "accuracy"])
def test_term_with_the_name_of_another_metric_is_refused(name):
    kd = jaxkd.distill(tiny.student, tiny.teacher(), combine(**{name: KD}), optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match=name):
        state = jax.eval_shape(lambda: kd.init(jax.random.key(0), tiny.batch(8)))
        jax.eval_shape(kd.evaluate, state, tiny.batch(8))


def test_numpy_dtypes_are_accepted():
    kd = jaxkd.distill(tiny.student, tiny.teacher(), OBJECTIVE, optimizer=optax.sgd(0.1))
    batch = {"image": tiny.batch(8)["image"].astype(np.float64), "label": tiny.batch(8)["label"].astype(np.int64)}
    expected = kd.init(jax.random.key(0), tiny.batch(8))
    tiny.assert_equal(kd.init(jax.random.key(0), batch), expected)


def test_teacher_in_training_mode_can_be_evaluated():
    noisy = jaxkd.adapters.plain(
        lambda key, x: jnp.eye(2),
        lambda w, x, train, key: x[:, 0, 0] @ w * (jax.random.bernoulli(key, 0.5, (2,)).reshape(1, 2) if train else 1),
    )
    teacher = jaxkd.teachers.frozen(noisy, jaxkd.Variables(jnp.eye(2)), train=True)
    kd = jaxkd.distill(noisy, teacher, combine(kd=KD), optimizer=optax.sgd(0.1))
    state = kd.init(jax.random.key(0), tiny.batch(8))
    assert np.isfinite(float(kd.evaluate(state, tiny.batch(8))["loss"].sum))


# --- axes that a step does not know ---------------------------------------------------------------------------------


def pmapped(function, axis_name):
    return jax.pmap(function, axis_name=axis_name, in_axes=(None, 0), devices=jax.devices()[:4])


def shard_mapped(function, *axes):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]).reshape((2, 2) if len(axes) == 2 else 4), axes)
    spec = jax.sharding.PartitionSpec
    return jax.shard_map(function, mesh=mesh, in_specs=(spec(), spec(axes)), out_specs=spec(), check_vma=False)


UNKNOWN = {
    "pmap": lambda function: pmapped(function, "batch"),
    "pmap without a name": lambda function: jax.pmap(function, in_axes=(None, 0), devices=jax.devices()[:4]),
    "pmap of one device": lambda function: jax.pmap(function, "batch", in_axes=(None, 0), devices=jax.devices()[:1]),
    "pmap of jit": lambda function: pmapped(jax.jit(function), "batch"),
    "shard_map": lambda function: shard_mapped(function, "data"),
    "a second axis": lambda function: shard_mapped(function, jaxkd.DATA_AXIS, "model"),
}


@pytest.mark.parametrize("function", ["step", "evaluate"])
@pytest.mark.parametrize("way", UNKNOWN)
def test_an_unknown_axis_of_devices_is_refused_when_traced(way, function):
    kd = jaxkd.distill(tiny.student, tiny.teacher(), OBJECTIVE, optimizer=optax.sgd(0.1))
    state = jax.eval_shape(lambda: kd.init(jax.random.key(0), tiny.batch(8)))
    batch = tiny.batch(8)
    if "pmap" in way:
        batch = jax.tree.map(lambda x: x.reshape(1 if "one device" in way else 4, -1, *x.shape[1:]), batch)
    with pytest.raises(ValueError, match=r"only axis that is mapped over devices.*axis_name=jaxkd.DATA_AXIS"):
        jax.eval_shape(UNKNOWN[way](getattr(kd, function)), state, batch)


def test_an_axis_of_vmap_is_free():
    kd = jaxkd.distill(tiny.student, tiny.teacher(), OBJECTIVE, optimizer=optax.sgd(0.1))
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    states = jax.eval_shape(jax.vmap(lambda key: kd.init(key, tiny.batch(8))), keys)
    axis_name = None if jax.__version_info__ < (0, 8) else "seed"  # an older JAX does not tell pmap's axes from vmap's
    trained, _ = jax.eval_shape(jax.vmap(kd.step, in_axes=(0, None), axis_name=axis_name), states, tiny.batch(8))
    assert jax.tree.map(jax.typeof, trained) == jax.tree.map(jax.typeof, states)


# --- several devices ------------------------------------------------------------------------------------------------

BANK = 1024
REMEMBERING = combine(
    crd=objectives.crd("student/vector", "teacher/vector", np.arange(BANK) % 7, negatives=4, embedding_size=8),
    review=objectives.with_projection(
        lambda key, context: jaxkd.ObjectiveVars({}, {"mean": jnp.zeros(4)}),
        # State of a device's own share, like statistics of a BatchNorm that are not synchronized.
        lambda params, state, context, key: (context, {"mean": context.student["vector"].mean(axis=0)}),
        term(losses.cross_entropy, "student/logits", "batch/label"),
    ),
)


def reduced(text):
    """Sizes of the arrays that a compiled program sums over devices."""
    shapes = re.findall(r"= \(?(.*?)\)? all-reduce(?:-start)?\(", text)
    found = [re.findall(r"\[([\d,]*)\]", shape) for shape in shapes]
    return [math.prod(map(int, filter(None, size.split(",")))) for shape in found for size in shape]


@pytest.mark.slow
def test_replicated_objective_state_is_not_communicated():
    """A checked `jax.shard_map` knows that the bank of CRD is equal on all devices, unlike a device's share."""
    kd = jaxkd.distill(tiny.student, tiny.teacher(), REMEMBERING, optimizer=optax.sgd(0.1))
    state, batch = kd.init(jax.random.key(0), tiny.batch(8)), jax.tree.map(jnp.asarray, tiny.batch(8))
    whole, axis = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec(jaxkd.DATA_AXIS)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), (jaxkd.DATA_AXIS,))
    found = {}
    for checked in (True, False):
        mapped = jax.shard_map(kd.step, mesh=mesh, in_specs=(whole, axis), out_specs=whole, check_vma=checked)
        compiled = jax.jit(mapped).lower(state, batch).compile()
        found[checked] = compiled(state, batch)[0], reduced(compiled.as_text())
    (checked, few), (unchecked, many) = found[True], found[False]
    assert max(few) < BANK * 8 == max(many)
    assert many.count(BANK * 8) == 2 and BANK not in many  # both banks, but not the index tables, which are unmodified
    tiny.assert_close(checked, unchecked, rtol=1e-6, atol=1e-7)
    expected, _ = jax.jit(kd.step)(state, batch)
    tiny.assert_close(checked, expected, rtol=1e-4, atol=1e-5)
    pmapped, _ = jaxkd.parallel.pmap(kd, jax.devices()[:4]).step(state, batch)
    tiny.assert_close(pmapped, expected, rtol=1e-4, atol=1e-5)
