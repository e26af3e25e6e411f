from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd.training.checkpoint import CheckpointError, Checkpoints
from jaxkd.types import LossVars, TrainState, Variables


class Pair(NamedTuple):
    first: Any
    second: Any


def make_state(seed: int = 0) -> TrainState:
    key = jax.random.key(seed)
    params = {
        "Dense_0": {"kernel": jax.random.normal(key, (3, 4)), "bias": jnp.zeros(4, jnp.bfloat16)},
        "a/b.c%": jnp.full(2, seed, jnp.float32),
        "layers": {7: jnp.float32(seed)},
    }
    optimizer = optax.chain(
        optax.clip(1.0), optax.sgd(optax.linear_schedule(1.0, 0.0, 10), momentum=0.9), optax.adam(1)
    )
    loss = LossVars(params={}, state={"bank": Pair([jnp.array(True)], (jnp.zeros((0, 3)), None))})
    return TrainState(
        student=Variables(params, {}),
        teacher=[Variables({"w": jnp.arange(5, dtype=jnp.uint8)})],
        loss=loss,
        opt_state={"student": optimizer.init(params), "objective": optimizer.init({})},
        step=jnp.int32(seed),
        key=key,
    )


def equal(a, b):
    """The same containers, dtypes and bits."""

    def raw(x):
        return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert np.asarray(raw(x)).tobytes() == np.asarray(raw(y)).tobytes()
    return True


def test_every_container_dtype_and_key_comes_back(tmp_path):
    state = make_state(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, {"history": [{"loss": 0.1}], "none": None})
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(make_state(0))
    assert equal(restored.state, state)
    assert restored.step == 3
    assert restored.extra == {"history": [{"loss": 0.1}], "none": None}
    # As free to follow other arrays to their device as a new state is.
    assert not any(leaf.committed for leaf in jax.tree.leaves(restored.state))
    jax.random.normal(restored.state.key)


def test_shapes_are_enough_of_a_target(tmp_path):
    state = make_state(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        assert equal(checkpoints.restore(target).state, state)
        assert equal(checkpoints.restore(jax.eval_shape(make_state)).state, state)


def test_a_state_comes_back_to_the_devices_of_the_target(tmp_path):
    mesh = jax.make_mesh((8,), ("d",))
    split, whole = NamedSharding(mesh, PartitionSpec("d")), NamedSharding(mesh, PartitionSpec())
    state = {"w": jnp.arange(16.0).reshape(8, 2), "key": jax.random.key(1)}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        target = {"w": jax.device_put(jnp.zeros((8, 2)), split), "key": jax.device_put(jax.random.key(0), whole)}
        restored = checkpoints.restore(target).state
    assert restored["w"].sharding == split
    assert restored["key"].sharding.is_equivalent_to(whole, 0)
    assert equal(restored, state)


def test_another_kind_of_key_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"key": jax.random.key(0, impl="rbg")})
        equal(checkpoints.restore({"key": jax.random.key(1, impl="rbg")}).state, {"key": jax.random.key(0, impl="rbg")})
        with pytest.raises(CheckpointError, match=r"key: key<rbg>\[\] in the checkpoint, key<fry>\[\] in the state"):
            checkpoints.restore({"key": jax.random.key(0)})


def test_a_state_of_another_structure_is_refused_by_name(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(4, {"a": jnp.zeros(2), "b": {"c": jnp.zeros(2, jnp.bfloat16)}, "d": jnp.zeros(1)})
        with pytest.raises(CheckpointError) as error:
            checkpoints.restore({"a": jnp.zeros(2), "b": {"c": jnp.zeros(2)}, "e": [jnp.zeros((1, 2), int)]})
    message = str(error.value)
    assert "the checkpoint of step 4" in message
    assert "b/c: bfloat16[2] in the checkpoint, float32[2] in the state" in message
    assert "d: float32[1] in the checkpoint; the state has no such array" in message
    assert "e/0: missing in the checkpoint; the state has int32[1,2]" in message
    assert "a:" not in message.replace("a: float", "")


def test_nothing_there_is_said(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.best() is None
        with pytest.raises(CheckpointError, match="there is no checkpoint in"):
            checkpoints.restore({"a": jnp.zeros(1)})
        checkpoints.save(2, {"a": jnp.zeros(1)})
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 1 in .*; there are \(2,\)"):
            checkpoints.restore({"a": jnp.zeros(1)}, step=1)


def test_the_last_few_and_the_best_stay_also_after_reopening(tmp_path):
    def state(step):
        return {"a": jnp.full(1, step)}

    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 3, 4):
            checkpoints.save(step, state(step), best=2 if step >= 2 else 1)
        assert checkpoints.steps() == (2, 3, 4)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.best() == 2
        assert checkpoints.restore(state(0), checkpoints.best()).state["a"] == 2
        checkpoints.save(5, state(5), best=2)
        assert checkpoints.steps() == (2, 4, 5)
        checkpoints.save(6, state(6), best=6)
        assert checkpoints.steps() == (5, 6)
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        checkpoints.save(7, state(7))
        assert checkpoints.steps() == (5, 6, 7)


def test_half_a_checkpoint_is_ignored_and_then_replaced(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.ones(1)})
    (tmp_path / "2").mkdir()
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 1
        checkpoints.save(2, {"a": jnp.full(1, 2.0)})
        checkpoints.save(3, {"a": jnp.full(1, 3.0)})
        assert checkpoints.steps() == (1, 2, 3)
        assert checkpoints.restore({"a": jnp.zeros(1)}, 2).state["a"] == 2


def test_saving_twice_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.ones(1)})
        checkpoints.save(1, {"a": jnp.zeros(1)})
        assert checkpoints.restore({"a": jnp.zeros(1)}).state["a"] == 1


def test_names_that_cannot_be_told_apart_are_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="two arrays of the state have the name"):
        checkpoints.save(1, Clash(1.0, 2.0))


@jax.tree_util.register_pytree_with_keys_class
class Clash:
    """A user's container whose keys say too little."""

    def __init__(self, a, b):
        self.a, self.b = a, b

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("same"), self.a), (jax.tree_util.GetAttrKey("same"), self.b)], None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


def test_the_arrays_can_be_read_without_jaxkd(tmp_path):
    import orbax.checkpoint as ocp

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(2))
    with ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        read = manager.restore(1, args=ocp.args.Composite(state=ocp.args.StandardRestore())).state
    np.testing.assert_array_equal(
        read["student"]["params"]["Dense_0"]["kernel"], make_state(2).student.params["Dense_0"]["kernel"]
    )


def test_keep_has_to_be_positive(tmp_path):
    with pytest.raises(ValueError, match="keep: expected at least 1"):
        Checkpoints(tmp_path, keep=0)
