"""Checkpoints: round trips, refusal of other states, retention, and damage to any file."""

import pathlib
import shutil
import subprocess
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd.training import CheckpointError, Checkpoints
from jaxkd.types import ObjectiveVars, TrainState, Variables


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
    loss = ObjectiveVars(params={}, state={"bank": Pair([jnp.array(True)], (jnp.zeros((0, 3)), None))})
    return TrainState(
        student=Variables(params, {}),
        teacher=[Variables({"w": jnp.arange(5, dtype=jnp.uint8)})],
        objective=loss,
        opt_state={"student": optimizer.init(params), "objective": optimizer.init({})},
        step=jnp.int32(seed),
        key=key,
    )


def equal(a, b):
    """Returns True for equal containers, dtypes and bits."""

    def raw(x):
        return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert x.shape == y.shape
        assert np.asarray(raw(x)).tobytes() == np.asarray(raw(y)).tobytes()
    return True


def test_every_container_dtype_and_key_is_restored(tmp_path):
    state = make_state(3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, {"history": [{"loss": 0.1}], "none": None})
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(make_state(0))
    assert equal(restored.state, state)
    assert restored.step == 3
    assert restored.extra == {"history": [{"loss": 0.1}], "none": None}
    # Uncommitted, like the arrays of a new state, so that JAX may move them to the device of other operands.
    assert not any(leaf.committed for leaf in jax.tree.leaves(restored.state))
    jax.random.normal(restored.state.key)


def test_target_can_be_shapes(tmp_path):
    state = make_state(1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
        assert equal(checkpoints.restore(target).state, state)
        assert equal(checkpoints.restore(jax.eval_shape(make_state)).state, state)


def test_state_is_restored_to_the_devices_of_the_target(tmp_path):
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


def test_key_of_another_implementation_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"key": jax.random.key(0, impl="rbg")})
        equal(checkpoints.restore({"key": jax.random.key(1, impl="rbg")}).state, {"key": jax.random.key(0, impl="rbg")})
        with pytest.raises(CheckpointError, match=r"key: key<rbg>\[\] in the checkpoint, key<fry>\[\] in the state"):
            checkpoints.restore({"key": jax.random.key(0)})


def test_state_of_another_structure_is_refused_with_the_names(tmp_path):
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


def test_missing_checkpoint_is_an_error(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None
        assert checkpoints.best() is None
        with pytest.raises(CheckpointError, match="there is no checkpoint in"):
            checkpoints.restore({"a": jnp.zeros(1)})
        checkpoints.save(2, {"a": jnp.zeros(1)})
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 1 in .*; expected one of \(2,\)"):
            checkpoints.restore({"a": jnp.zeros(1)}, step=1)


def test_last_checkpoints_and_the_best_are_kept_across_reopening(tmp_path):
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
        assert checkpoints.steps() == (2, 5, 6)  # a run that resumes from 5 needs 2
        checkpoints.save(7, state(7), best=6)
        assert checkpoints.steps() == (6, 7)
    with Checkpoints(tmp_path, keep=None) as checkpoints:
        checkpoints.save(8, state(8))
        assert checkpoints.steps() == (6, 7, 8)


def test_leftovers_of_a_killed_process_are_ignored_and_removed(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.ones(1)})
    leftovers = ("2.unfinished", "2.unfinished.orbax-checkpoint-tmp", "0.deleted")
    for name in leftovers:
        (tmp_path / name / "state").mkdir(parents=True)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == (1,)
        assert checkpoints.recover() == 1
        assert {path.name for path in tmp_path.iterdir()} == {"1", *leftovers}  # reading changes nothing
        checkpoints.save(2, {"a": jnp.full(1, 2.0)})
        assert {path.name for path in tmp_path.iterdir()} == {"1", "2"}
        assert checkpoints.restore({"a": jnp.zeros(1)}).state["a"] == 2


def test_second_save_of_a_step_keeps_the_first(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.ones(1)})
        checkpoints.save(1, {"a": jnp.zeros(1)})
        assert checkpoints.restore({"a": jnp.zeros(1)}).state["a"] == 1


def test_leaves_with_equal_names_are_refused(tmp_path):
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(ValueError, match="two named"),
    ):
        checkpoints.save(1, Clash(1.0, 2.0))


@jax.tree_util.register_pytree_with_keys_class
class Clash:
    """A container whose two leaves have the same key."""

    def __init__(self, a, b):
        self.a, self.b = a, b

    def tree_flatten_with_keys(self):
        return [(jax.tree_util.GetAttrKey("same"), self.a), (jax.tree_util.GetAttrKey("same"), self.b)], None

    @classmethod
    def tree_unflatten(cls, aux, children):
        return cls(*children)


def test_arrays_can_be_read_without_jaxkd(tmp_path):
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


# --- damage ----------------------------------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove_the_folder(path):
    shutil.rmtree(path.parent)


DAMAGES = [truncate, flip_a_bit, lambda path: path.write_bytes(b""), pathlib.Path.unlink, remove_the_folder]


def contents(directory):
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A directory with two checkpoints."""
    directory = tmp_path_factory.mktemp("two")
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), {"note": step})
    return directory


@pytest.mark.parametrize("damage", DAMAGES, ids=["truncated", "bit flipped", "emptied", "removed", "folder removed"])
def test_damage_to_any_file_is_detected_and_the_checkpoint_before_is_used(damage, two, tmp_path):
    files = [path.relative_to(two) for path in sorted((two / "2").rglob("*")) if path.is_file()]
    kinds = {path.parts[1] if len(path.parts) > 2 else path.name for path in files}
    assert {"state", "extra.json", "SHA256SUMS", "_CHECKPOINT_METADATA"} <= kinds
    if damage is remove_the_folder:  # not of the checkpoint itself, which would then be missing and not damaged
        files = [file for file in files if len(file.parts) > 2]
    for number, file in enumerate(files):
        copy = tmp_path / str(number)
        shutil.copytree(two, copy)
        damage(copy / file)
        after = contents(copy)
        with Checkpoints(copy) as checkpoints:
            assert checkpoints.damage(2)
            with pytest.raises(CheckpointError, match=rf"step 2, {copy}/2, is damaged: "):
                checkpoints.restore(make_state(), 2)
            if number < 2:  # reading with orbax is slow
                with pytest.warns(UserWarning, match=rf"step 2, {copy}/2, is damaged: .* step 1 is read instead"):
                    assert equal(checkpoints.restore(make_state()).state, make_state(1))
            assert contents(copy) == after
            with pytest.warns(
                UserWarning, match=r"step 2 is damaged: .* set aside as .*/2\.corrupt; .* step 1\."
            ) as found:
                assert checkpoints.recover() == 1
            warning = str(found[0].message)
            assert file.name == "SHA256SUMS" or "more files" in warning or file.relative_to("2").as_posix() in warning
            assert checkpoints.steps() == (1,)
            assert checkpoints.extra() == {"note": 1}
            aside = {name.replace("2/", "2.corrupt/", 1): content for name, content in after.items()}
            assert contents(copy) == aside  # nothing was deleted


def test_files_can_be_verified_without_jaxkd(two):
    found = subprocess.run(["sha256sum", "--strict", "-c", "SHA256SUMS"], cwd=two / "2", capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count(": OK") == sum(path.is_file() for path in (two / "2").rglob("*")) - 1


def test_unknown_file_is_damage_unless_hidden(two, tmp_path):
    shutil.copytree(two, tmp_path / "two")
    (tmp_path / "two/2/state/d/.nfs0001").write_text("")
    with Checkpoints(tmp_path / "two") as checkpoints:
        assert checkpoints.damage(2) == []
    (tmp_path / "two/2/state/d/more").write_text("")
    with Checkpoints(tmp_path / "two") as checkpoints:
        assert checkpoints.damage(2) == ["state/d/more is not in SHA256SUMS"]


def test_damage_to_all_checkpoints_is_an_error_and_changes_nothing(two, tmp_path):
    copy = tmp_path / "two"
    shutil.copytree(two, copy)
    flip_a_bit(copy / "1/state/_METADATA")
    truncate(copy / "2/extra.json")
    with Checkpoints(copy) as checkpoints:
        for read in (checkpoints.recover, checkpoints.extra, lambda: checkpoints.restore(make_state())):
            with pytest.raises(
                CheckpointError, match=r"(?s)all checkpoints in .*1: state/_METADATA does not .*2: extra.json"
            ):
                read()
        assert checkpoints.steps() == (1, 2)


def test_damaged_checkpoint_is_replaced_by_a_new_save_of_its_step(two, tmp_path):
    copy = tmp_path / "two"
    for name in ("2.corrupt", "2"):
        shutil.copytree(two, copy if name == "2" else tmp_path / "other", dirs_exist_ok=True)
    shutil.copytree(two / "2", copy / "2.corrupt")
    truncate(copy / "2/extra.json")
    with Checkpoints(copy) as checkpoints:
        checkpoints.save(2, make_state(7))
        assert equal(checkpoints.restore(make_state()).state, make_state(7))
        assert {path.name for path in copy.iterdir()} == {"1", "2", "2.corrupt", "2.corrupt.1"}


def test_recover_chooses_a_checkpoint_whose_best_one_is_intact(tmp_path):
    def make(directory):
        with Checkpoints(directory, keep=3) as checkpoints:
            for step, best in ((1, 1), (2, 1), (3, 3), (4, 3)):
                checkpoints.save(step, {"a": jnp.full(1, step)}, best=best)
        truncate(directory / "3/extra.json")

    make(tmp_path / "a")
    with Checkpoints(tmp_path / "a", keep=3) as checkpoints:
        assert checkpoints.steps() == (1, 2, 3, 4)
        with pytest.warns(UserWarning, match=r"step 3 is damaged: .*resumes from the checkpoint of step 2\."):
            assert checkpoints.recover() == 2
        assert checkpoints.steps() == (1, 2, 4)
        # Saving 3 again makes 4 usable.
        checkpoints.save(3, {"a": jnp.full(1, 3)}, best=3)
        assert checkpoints.recover() == 4
    make(tmp_path / "b")
    for step in (1, 2):
        shutil.rmtree(tmp_path / "b" / str(step))
    with Checkpoints(tmp_path / "b") as checkpoints:
        with pytest.warns(UserWarning) as found:
            assert checkpoints.recover() == 4
        assert "the best checkpoint so far, of step 3, is damaged or missing" in str(found[1].message)


def test_extra_that_json_cannot_hold_is_refused_before_writing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"a": jnp.ones(1)})
        with pytest.raises(TypeError):
            checkpoints.save(2, {"a": jnp.ones(1)}, {"function": make_state})
        checkpoints.save(3, {"a": jnp.ones(1)})
        assert {path.name for path in tmp_path.iterdir()} == {"1", "3"}
