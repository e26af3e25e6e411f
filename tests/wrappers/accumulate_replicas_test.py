"""Micro-batches of replicas: equal numbers on any number of devices, and empty micro-batches."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import jaxkd
from jaxkd import DATA_AXIS, Variables, adapters, losses, parallel, term, wrappers
from jaxkd._core.batch_norm import replicas
from tests import tiny

PARTS, MOMENTUM = 4, 0.75


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, use_fast_variance=False, name="norm")(x)


MODEL = wrappers.accumulate(adapters.linen(Norm(), inputs="x"), PARTS)
OLD = {"mean": np.array([0.5, -2.0]), "var": np.array([2.0, 1.0])}
VARIABLES = Variables(
    {"norm": {"scale": jnp.ones(2), "bias": jnp.zeros(2)}},
    {"batch_stats": {"norm": {name: jnp.float32(x) for name, x in OLD.items()}}},
)


def batch(size, rows, keep=None):
    """A batch padded to a number of rows, with an optional mask of its own."""
    x = np.random.default_rng(size).normal(1, 2, (rows, 2)).astype(np.float32)
    mask = np.arange(rows) < size
    return {"x": x, "mask": mask if keep is None else mask & keep(np.arange(rows))}


def by_hand(batch, count):
    """Normalized examples (those of the mask), and running statistics, by the definition, in float64."""
    x, normalized, replica_states = np.float64(batch["x"]), np.full(batch["x"].shape, np.nan), []
    for rows in np.split(np.arange(len(x)), count):
        states = []
        for part in range(PARTS):
            own = rows[part::PARTS]
            own = own[batch["mask"][own]]
            if len(own):
                mean, var = x[own].mean(axis=0), x[own].var(axis=0)
                normalized[own] = (x[own] - mean) / np.sqrt(var + 1e-5)
                states.append([MOMENTUM * OLD["mean"] + 0.25 * mean, MOMENTUM * OLD["var"] + 0.25 * var])
        replica_states.append(np.mean(states, axis=0) if states else [OLD["mean"], OLD["var"]])
    return normalized, np.mean(replica_states, axis=0)


def run(batch, count):
    with replicas(count):
        outputs, state = MODEL.apply(VARIABLES, batch, key=None, train=True)
    return outputs["logits"], state["batch_stats"]["norm"]


def by_pmap(batch, count, devices):
    split = {name: x.reshape(devices, -1, *x.shape[1:]) for name, x in batch.items()}
    mapped = jax.pmap(functools.partial(run, count=count), axis_name=DATA_AXIS, devices=jax.devices()[:devices])
    logits, state = mapped(split)
    return logits.reshape(batch["x"].shape), {name: x.mean(axis=0) for name, x in state.items()}


@pytest.mark.parametrize(
    ("count", "devices"), [(1, 1), (8, 1), (2, 1), (1, 8), (8, 8), (2, 8), (8, 2)], ids=lambda x: str(x)
)
def test_micro_batches_of_replicas_are_those_of_one_device(count, devices):
    """Padding ends in the middle of a part; masks leave parts, or those of some replicas, without examples."""
    cases = {
        "13 examples": batch(13, 16),
        "100 examples": batch(100, 104),
        "parts without examples": batch(16, 16, lambda i: i % 4 != 1),
        "some replicas' parts without examples": batch(32, 32, lambda i: (i % 4 != 1) | (i > 20)),
        "nothing": batch(16, 16, lambda i: i < 0),
    }
    for name, one in cases.items():
        if devices == 1:
            logits, state = jax.jit(functools.partial(run, count=count))(one)
        else:
            logits, state = by_pmap(one, count, devices)
        expected, (mean, var) = by_hand(one, count)
        np.testing.assert_allclose(logits[one["mask"]], expected[one["mask"]], rtol=1e-4, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(state["mean"], mean, rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(state["var"], var, rtol=1e-5, atol=1e-5, err_msg=name)


def test_a_batch_without_a_mask_that_does_not_divide():
    given = {"x": batch(12, 12)["x"]}  # 6 rows a device, in parts of 2, 2, 1 and 1
    logits, state = by_pmap(given, 1, 2)
    expected, (mean, var) = by_hand({**given, "mask": np.ones(12, bool)}, 1)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(state["mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(state["var"], var, rtol=1e-5)


def test_state_that_no_part_changes_is_returned_exactly():
    """A sum of finfo(float32).min over the parts, or over the devices, would be infinite."""
    lowest = np.finfo(np.float32).min
    state = {"mask": jnp.array([lowest, -jnp.inf, 0.1]), "moved": jnp.zeros(2)}

    def apply(variables, batch, *, key, train):
        logits = batch["x"] @ variables.params
        return {"logits": logits}, {**variables.state, "moved": variables.state["moved"] + batch["x"][0, 0]}

    model = jaxkd.Model(lambda key, batch: Variables(jnp.eye(2), state), apply)
    kd = jaxkd.distill(
        wrappers.accumulate(model, 3),
        jaxkd.teachers.none(),
        term(losses.cross_entropy, "student/logits", "batch/label"),
        optimizer=optax.sgd(0.0),
    )
    given = {"x": np.arange(12, dtype=np.float32).reshape(6, 2), "label": np.zeros(6, np.int32)}
    for placed, moved in ((parallel.jit(kd), 2.0), (parallel.pmap(kd, jax.devices()[:2]), 5.0)):
        after, _ = placed(placed.init(jax.random.key(0), given), given)
        assert after.student.state["mask"].tolist() == [lowest, -np.inf, np.float32(0.1)]
        assert after.student.state["moved"].tolist() == [moved, moved]


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("size", [96, 100, 13])
def test_training_is_equal_on_every_placement(size, count):
    def net():
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x, train):
                x = nn.Dense(8)(x)
                return nn.Dense(3)(nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)))

        return adapters.linen(Net(), inputs="x")

    objective = term(losses.cross_entropy, "student/logits", "batch/label")
    kd = jaxkd.distill(
        wrappers.accumulate(net(), PARTS), jaxkd.teachers.none(), objective, optimizer=optax.sgd(0.1, momentum=0.9)
    )
    found = {}
    for name, placed in {
        "jit": parallel.jit(kd, replicas=count),
        "pmap": parallel.pmap(kd, replicas=count),
        "shard": parallel.shard(kd, Mesh(np.array(jax.devices()), ("data",)), replicas=count),
    }.items():
        rng = np.random.default_rng(0)
        given = {"x": rng.normal(size=(size, 4)).astype(np.float32), "label": np.arange(size, dtype=np.int32) % 3}
        state = placed.init(jax.random.key(0), given)
        for _ in range(5):
            state, _ = placed(state, given)
        found[name] = state.student
    tiny.assert_close(found["pmap"], found["jit"], rtol=1e-4, atol=1e-5)
    tiny.assert_close(found["shard"], found["jit"], rtol=1e-4, atol=1e-5)
