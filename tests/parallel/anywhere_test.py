"""Weights, keys, states and batches from other meshes, explicit axes, other devices and NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxkd
from jaxkd import combine, losses, parallel, teachers, term
from jaxkd import data as data_lib
from jaxkd._core.arrays.shardings import automatic, together
from tests import tiny

DEVICES = jax.devices()
OBJECTIVE = combine(
    kd=term(losses.soft_target_kl, "student/logits", "teacher/logits"),
    ce=term(losses.cross_entropy, "student/logits", "batch/label"),
)


def explicit(shape, names, devices=None):
    return jax.make_mesh(shape, names, axis_types=(AxisType.Explicit,) * len(names), devices=devices)


MESHES = {
    "explicit": explicit((4,), ("data",), DEVICES[4:]),
    "explicit 2-d": explicit((4, 2), ("a", "b")),
    "automatic": Mesh(np.array(DEVICES[2:6]), ("m",)),
}


def split(mesh, x):
    """Splits the first axis, where it divides, over the first axis of a mesh."""
    first = mesh.axis_names[0]
    divides = jnp.ndim(x) and x.shape[0] % mesh.shape[first] == 0
    return jax.device_put(x, NamedSharding(mesh, PartitionSpec(first) if divides else PartitionSpec()))


SOURCES = {
    "numpy": lambda x: x if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x),
    "another device": lambda x: jax.device_put(x, DEVICES[3]),
    **{name: functools.partial(split, mesh) for name, mesh in MESHES.items()},
}
PLACES = {
    "jit": parallel.jit,
    "pmap": lambda kd: parallel.pmap(kd, DEVICES[:2]),
    "shard": lambda kd: parallel.shard(kd, explicit((2,), ("data",), DEVICES[:2])),
    "rules": lambda kd: parallel.shard(
        kd, MESHES["explicit 2-d"], rules={"": parallel.fully_sharded(MESHES["explicit 2-d"], min_size=4)}
    ),
}


def distiller(variables):
    teacher = teachers.frozen(tiny.teacher_model, variables)
    return jaxkd.distill(tiny.student, teacher, OBJECTIVE, optimizer=optax.sgd(0.1, momentum=0.9))


@functools.cache
def expected():
    kd = distiller(tiny.teacher_variables())
    state = kd.init(jax.random.key(1), tiny.batch(8))
    found = []
    for seed, size in enumerate((8, 8, 7)):
        state, metrics = jax.jit(kd.step)(state, tiny.batch(size, seed))
        found.append(tiny.numbers(metrics)["loss"])
    return found


@pytest.mark.parametrize(
    "place", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("pmap", "rules")), "jit", "shard"]
)
@pytest.mark.parametrize(
    "source", [name if name == "explicit" else pytest.param(name, marks=pytest.mark.slow) for name in SOURCES]
)
def test_arrays_from_anywhere(source, place):
    """The state moves after ``init``; the second batch is on another mesh than the first, the last does not divide."""
    there, elsewhere = SOURCES[source], SOURCES["automatic" if source == "explicit" else "explicit"]
    placed = PLACES[place](distiller(jax.tree.map(there, tiny.teacher_variables())))
    state = placed.init(there(jax.random.key(1)), jax.tree.map(there, tiny.batch(8)))
    state = jax.tree.map(elsewhere, state)
    assert np.isfinite(tiny.numbers(placed.evaluate(state, jax.tree.map(there, tiny.batch(8))))["loss"])
    found = []
    for seed, (size, where) in enumerate(((8, there), (8, elsewhere), (7, there))):
        state, metrics = placed(state, jax.tree.map(where, tiny.batch(size, seed)))
        found.append(tiny.numbers(metrics)["loss"])
    assert found == pytest.approx(expected(), rel=1e-4)


@pytest.mark.parametrize("place", ["jit", "shard", pytest.param("pmap", marks=pytest.mark.slow)])
def test_within_a_mesh_that_the_user_has_set(place):
    with jax.set_mesh(explicit((8,), ("x",))):
        placed = PLACES[place](distiller(tiny.teacher_variables()))
        state = placed.init(jax.random.key(1), tiny.batch(8))
        state, metrics = placed(state, tiny.batch(8))
        assert tiny.numbers(metrics)["loss"] == pytest.approx(expected()[0], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("other", ["same", "another"])
def test_rules_within_a_mesh_of_explicit_axes_that_the_user_has_set(other):
    mesh = MESHES["explicit 2-d"]
    with jax.set_mesh(mesh if other == "same" else explicit((8,), ("x",))):
        placed = PLACES["rules"](distiller(tiny.teacher_variables()))
        state = placed.init(jax.random.key(1), tiny.batch(8))
        state, metrics = placed(state, tiny.batch(8))
        assert tiny.numbers(metrics)["loss"] == pytest.approx(expected()[0], rel=1e-4)
        assert np.isfinite(tiny.numbers(placed.evaluate(state, tiny.batch(8)))["loss"])


def test_a_plain_jit_on_explicit_axes_gives_the_loss_or_names_the_cure():
    """The teacher's pooling reshapes, which explicit axes do not permit; a linear model is right on them."""
    mesh = explicit((8,), ("data",))
    batch = jax.tree.map(functools.partial(split, mesh), tiny.batch(8))
    linear = jaxkd.adapters.plain(lambda key, x: jnp.ones((2, 3)), lambda w, x: x[:, 0, 0] @ w, inputs="image")
    teacher = teachers.frozen(linear, jaxkd.Variables(jnp.eye(2, 3)))
    kd = jaxkd.distill(linear, teacher, OBJECTIVE, optimizer=optax.sgd(1.0))
    alone = jax.jit(kd.step)(kd.init(jax.random.key(1), tiny.batch(8)), tiny.batch(8))[1]
    with jax.set_mesh(mesh):
        found = jax.jit(kd.step)(kd.init(jax.random.key(1), batch), batch)[1]
        assert tiny.numbers(found) == pytest.approx(tiny.numbers(alone), rel=1e-5)
        kd = distiller(tiny.teacher_variables())
        state = kd.init(jax.random.key(1), batch)
        for function in (kd.step, kd.evaluate):
            with pytest.raises(ValueError, match=r"explicit axes.*jaxkd.parallel.jit\(kd\) or jaxkd.parallel.shard"):
                jax.jit(function)(state, batch)


def test_a_teacher_on_explicit_axes_is_stored_on_automatic_ones():
    """With the weights' own axes, a sum of two shapes that are split differently is an error in ``init``."""
    variables = jax.tree.map(SOURCES["explicit 2-d"], tiny.teacher_variables())
    state = teachers.frozen(tiny.teacher_model, variables).init(None, {}, None)
    for x, given in zip(*map(jax.tree.leaves, (state, variables)), strict=True):
        assert set(x.sharding.mesh.axis_types) == {AxisType.Auto}
        assert x.sharding.spec == given.sharding.spec
        np.testing.assert_array_equal(x, given)


def test_together_leaves_arrays_in_place():
    x = {"committed": jax.device_put(jnp.ones(2), DEVICES[0]), "free": jnp.ones(2), "host": np.ones(2)}
    found = together(x, x)
    assert all(a is b for a, b in zip(jax.tree.leaves(found), 2 * jax.tree.leaves(x), strict=True))
    key = split(MESHES["explicit"], jax.random.key(3))
    assert jax.random.key_data(automatic(key)).tolist() == [0, 3]


@pytest.mark.parametrize("place", ["jit", "pmap", "shard"])
def test_host_arrays_in_64_bits_stay_finite_and_are_not_wrapped(place):
    batch = tiny.batch(8)
    placed = PLACES[place](distiller(tiny.teacher_variables()))
    state = placed.init(jax.random.key(1), batch)
    wide = {**batch, "image": np.float64(batch["image"]), "label": np.int64(batch["label"]), "more": np.full(8, -1e300)}
    state, metrics = placed(state, wide)
    assert tiny.numbers(metrics)["loss"] == pytest.approx(expected()[0], rel=1e-4)
    with pytest.raises(ValueError, match=r"batch\['index'\]: expected integers that fit int32, got int64 from "):
        placed(state, {**wide, "index": np.arange(8) + 2**40})


def test_resident_arrays_follow_the_state():
    data = data_lib.from_arrays(np.zeros((8, 2), np.float32), np.arange(8))
    free, placed = (data_lib.Resident(data, 4, device=device) for device in (None, DEVICES[1]))
    state = jax.device_put({"a": jnp.ones(1)}, DEVICES[3])
    assert parallel.replicated_arrays(state, free) is free.arrays
    moved = parallel.replicated_arrays(state, placed)
    assert {x.device for x in jax.tree.leaves(moved)} == {DEVICES[3]}
    assert parallel.replicated_arrays(state, placed) is moved
