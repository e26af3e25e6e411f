"""Safetensors and orbax: bit-exact round trips, atomic writes, readable without jaxkd."""

import json
import os
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import nnx

import jaxkd
from jaxkd import adapters, weights
from jaxkd._core.files import replacing
from jaxkd.weights import _safetensors_file

DTYPES = ["float32", "bfloat16", "float16", "int32", "uint8", "bool"]


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Dense(4)(x))
        return nn.Dense(2)(x)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](self.dropout(self.norm(self.layers[0](x))))


BATCH = {"image": jnp.ones((2, 3))}
MODELS = {
    "linen": adapters.linen(Net()),
    "nnx": adapters.nnx(NnxNet),
    "plain": adapters.plain(lambda key, x: [jax.random.normal(key, (3, 2)), (jnp.ones(2),)], lambda w, x: x @ w[0]),
    "one array": adapters.plain(lambda key, x: jnp.eye(3), lambda w, x: x @ w),
}


def _train_state(seed):
    """Builds a state in which no part is empty and only the student has its weights."""
    student = _odd_bits(jax.eval_shape(MODELS["linen"].init, jax.random.key(0), BATCH), seed)
    others = {"kernel": jnp.full(3, seed)}
    objective = jaxkd.ObjectiveVars({"regressor": others}, {"bank": others})
    optimizer = {"student": optax.adam(0.1).init(student.params), "objective": ()}
    return jaxkd.TrainState(
        student, jaxkd.Variables(others), objective, optimizer, jnp.int32(seed), jax.random.key(seed)
    )


def _odd_bits(like, seed=0):
    """Returns random bit patterns, which include NaNs with payloads and negative zeros."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.integers(0, 256, x.size * 4, np.uint8).view(np.float32).reshape(x.shape), like)


def _bits(tree):
    return jax.tree.map(lambda x: (str(x.dtype), x.shape, np.asarray(x).tobytes()), tree)


FORMATS = {
    "safetensors": (weights.save_safetensors, weights.load_safetensors, weights.load_safetensors_metadata),
    "orbax": (weights.save_orbax, weights.load_orbax, weights.load_orbax_metadata),
}


@pytest.fixture(params=FORMATS, ids=str)
def fmt(request):
    return FORMATS[request.param]


@pytest.mark.parametrize("name", MODELS)
def test_a_round_trip_preserves_every_bit(fmt, name, tmp_path):
    save, load, _ = fmt
    model = MODELS[name]
    template = jax.eval_shape(model.init, jax.random.key(0), BATCH)
    given = _odd_bits(template)
    save(tmp_path / "w", given)
    back = weights.fit_to(template, load(tmp_path / "w"))
    assert jax.tree.structure(back) == jax.tree.structure(given)
    assert _bits(back) == _bits(given)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_preserves_its_bits(fmt, dtype, tmp_path):
    save, load, _ = fmt
    kind = jnp.dtype(dtype)
    raw = np.random.default_rng(1).integers(0, 2 if dtype == "bool" else 256, 6 * kind.itemsize, np.uint8)
    given = {"params": {"w": raw.view(kind).reshape(2, 3), "scalar": raw.view(kind)[0].reshape(())}}
    given["params"]["transposed"] = given["params"]["w"].T  # not C-contiguous
    given["params"]["device"] = jnp.asarray(given["params"]["w"])
    save(tmp_path / "w", given)
    found = load(tmp_path / "w")
    assert _bits(found) == _bits({f"params/{name}": value for name, value in given["params"].items()})
    assert _bits(weights.fit_to(given, found)) == _bits(given)


def test_safetensors_stores_eight_bit_floats(tmp_path):
    given = {"params": {t: np.arange(4).astype(jnp.dtype(t)) for t in ("float8_e4m3fn", "float8_e5m2")}}
    weights.save_safetensors(tmp_path / "w", given)
    assert _bits(weights.fit_to(given, weights.load_safetensors(tmp_path / "w"))) == _bits(given)


def test_only_the_student_of_a_train_state_is_saved(fmt, tmp_path):
    save, load, _ = fmt
    state = _train_state(0)
    save(tmp_path / "w", state)
    found = load(tmp_path / "w")
    assert sorted(found) == sorted(
        [f"params/{m}/{w}" for m in ("Dense_0", "Dense_1") for w in ("bias", "kernel")]
        + [f"params/BatchNorm_0/{w}" for w in ("bias", "scale")]
        + [f"batch_stats/BatchNorm_0/{w}" for w in ("mean", "var")]
    )
    assert _bits(weights.fit_to(state.student, found)) == _bits(state.student)


def test_a_loaded_teacher_has_the_same_outputs(fmt, tmp_path):
    save, load, _ = fmt
    for model in (MODELS["linen"], MODELS["nnx"]):
        variables = model.init(jax.random.key(3), BATCH)
        save(tmp_path / "w", variables, overwrite=True)
        template = jax.eval_shape(model.init, jax.random.key(0), BATCH)
        teacher = jaxkd.teachers.frozen(model, weights.fit_to(template, load(tmp_path / "w")))
        found = teacher.apply(teacher.init(None, BATCH, None), BATCH, key=None)["logits"]
        wanted = model.apply(variables, BATCH, key=None, train=False)[0]["logits"]
        np.testing.assert_array_equal(found, wanted)


def test_linen_applies_what_orbax_and_safetensors_restore(tmp_path):
    variables = Net().init(jax.random.key(0), BATCH["image"])
    wanted = Net().apply(variables, BATCH["image"])
    weights.save_orbax(tmp_path / "orbax", variables)
    with ocp.StandardCheckpointer() as checkpointer:
        restored = checkpointer.restore(tmp_path / "orbax")
    np.testing.assert_array_equal(Net().apply(restored, BATCH["image"]), wanted)
    weights.save_safetensors(tmp_path / "file", variables)
    flat = safetensors.numpy.load_file(tmp_path / "file")
    np.testing.assert_array_equal(flat["params/Dense_0/kernel"], variables["params"]["Dense_0"]["kernel"])


def test_metadata_is_restored(tmp_path):
    variables = {"params": {"w": np.ones(2)}}
    weights.save_safetensors(tmp_path / "a", variables, metadata={"accuracy": "0.75", "format": "np"})
    found = weights.load_safetensors_metadata(tmp_path / "a")
    assert found.pop("producer").startswith("jaxkd-toolkit ")
    assert found == {"accuracy": "0.75", "format": "np"}
    with pytest.raises(TypeError, match=r"expected strings by name, got 'accuracy': 0\.75\. Use json\.dumps"):
        weights.save_safetensors(tmp_path / "b", variables, metadata={"accuracy": 0.75})
    weights.save_orbax(tmp_path / "c", variables, metadata={"classes": ["a", "b"], "accuracy": 0.75})
    found = weights.load_orbax_metadata(tmp_path / "c")
    assert found.pop("producer").startswith("jaxkd-toolkit ")
    assert found == {"classes": ["a", "b"], "accuracy": 0.75}


# --- atomic writes ----------------------------------------------------------------------------------------------------


def test_overwriting_has_to_be_requested(fmt, tmp_path):
    save, load, _ = fmt
    save(tmp_path / "w", {"params": {"w": np.ones(2)}})
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save(tmp_path / "w", {"params": {"w": np.zeros(2)}})
    np.testing.assert_array_equal(load(tmp_path / "w")["params/w"], np.ones(2))
    save(tmp_path / "w", {"params": {"w": np.zeros(2)}}, overwrite=True)
    np.testing.assert_array_equal(load(tmp_path / "w")["params/w"], np.zeros(2))
    assert os.listdir(tmp_path) == ["w"]
    with pytest.raises(FileNotFoundError, match="Create it first"):
        save(tmp_path / "nowhere" / "w", {"params": {"w": np.zeros(2)}})


def test_only_a_checkpoint_is_replaced_by_a_checkpoint(tmp_path):
    precious = tmp_path / "home"
    precious.mkdir()
    (precious / "thesis.tex").write_text("all")
    with pytest.raises(FileExistsError, match="expected an orbax checkpoint to replace, got another directory"):
        weights.save_orbax(precious, {"params": {"w": np.ones(2)}}, overwrite=True)
    with pytest.raises(FileExistsError, match="expected a file to replace, got a directory"):
        weights.save_safetensors(precious, {"params": {"w": np.ones(2)}}, overwrite=True)
    assert (precious / "thesis.tex").read_text() == "all"
    (tmp_path / "file").write_text("all")
    with pytest.raises(FileExistsError, match="expected a directory to replace, got a file"):
        weights.save_orbax(tmp_path / "file", {"params": {"w": np.ones(2)}}, overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "home"]


def test_a_failure_leaves_the_old_file(fmt, tmp_path, monkeypatch):
    save, load, _ = fmt
    save(tmp_path / "w", {"params": {"w": np.ones(2)}})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_safetensors_file.safetensors.numpy, "save_file", full)
    monkeypatch.setattr(ocp.StandardCheckpointer, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path / "w", {"params": {"w": np.zeros(2)}}, overwrite=True)
    monkeypatch.undo()
    np.testing.assert_array_equal(load(tmp_path / "w")["params/w"], np.ones(2))
    assert os.listdir(tmp_path) == ["w"]


@pytest.mark.parametrize("directory", [False, True])
def test_a_kill_at_any_rename_leaves_the_old_or_the_new(directory, tmp_path, monkeypatch):
    """Looks at the disk before and after every rename: between two of them, a kill changes nothing."""

    def write(path, text):
        if directory:
            path.mkdir()
        (path / "x" if directory else path).write_text(text)

    def look():
        seen.append({path.read_text() for path in tmp_path.rglob("*") if path.is_file()})

    def rename(source, target, real=os.replace):
        look()
        real(source, target)
        look()

    seen = []
    write(tmp_path / "w", "old")
    monkeypatch.setattr(os, "replace", rename)
    with replacing(tmp_path / "w", overwrite=True) as temporary:
        look()
        write(temporary, "new")
    look()
    assert seen[0] == {"old"} and seen[-1] == {"new"} and len(seen) == (6 if directory else 4)
    assert all("old" in texts or "new" in texts for texts in seen)
    assert os.listdir(tmp_path) == ["w"]


def test_files_have_the_default_permissions(tmp_path):
    (tmp_path / "other").write_text("")
    weights.save_safetensors(tmp_path / "w", {"params": {"w": np.ones(2)}})
    assert (tmp_path / "w").stat().st_mode == (tmp_path / "other").stat().st_mode


# --- invalid sources and files ----------------------------------------------------------------------------------------


def test_sources_that_are_not_weights_are_errors(fmt, tmp_path):
    save, _, _ = fmt
    path = tmp_path / "w"
    with pytest.raises(TypeError, match="expected Variables"):
        save(path, {"w": np.ones(2)})
    with pytest.raises(TypeError, match="params/w: expected an array of numbers, got key"):
        save(path, {"params": {"w": jax.random.key(0)}})
    with pytest.raises(TypeError, match="params/w: expected an array of numbers, got float"):
        save(path, {"params": {"w": 1.0}})
    with pytest.raises(ValueError, match="two arrays have the name 'params/a/b'"):
        save(path, {"params": {"a": {"b": np.ones(1)}, "a/b": np.ones(1)}})
    with pytest.raises(ValueError, match="expected no collection named 'params'"):
        save(path, jaxkd.Variables({"w": np.ones(1)}, {"params": {"v": np.ones(1)}}))
    assert not os.listdir(tmp_path)


def test_arrays_that_a_format_cannot_store_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"float32\[0, 2\] has no elements, and orbax cannot store it"):
        weights.save_orbax(tmp_path / "w", {"params": {"w": np.ones((0, 2), np.float32)}})
    with pytest.raises(ValueError, match="orbax would give two arrays this name"):
        weights.save_orbax(tmp_path / "w", {"params": {"a": {"b": np.ones(1)}, "a.b": np.ones(1)}})
    with pytest.raises(ValueError, match=r"of dtypes \['int4'\]"):
        weights.save_safetensors(tmp_path / "w", {"params": {"w": np.ones(2, ml_dtypes.int4)}})
    assert not os.listdir(tmp_path)


def test_a_damaged_file_is_reported(tmp_path):
    path = tmp_path / "w.safetensors"
    weights.save_safetensors(path, {"params": {"w": np.ones(200)}})
    path.write_bytes(path.read_bytes()[:-1])
    for load in (weights.load_safetensors, weights.load_safetensors_metadata):
        with pytest.raises(ValueError, match=r"w\.safetensors: expected a complete safetensors file"):
            load(path)
        with pytest.raises(FileNotFoundError):
            load(tmp_path / "nothing")


def test_a_damaged_checkpoint_is_reported(tmp_path):
    weights.save_orbax(tmp_path / "w", {"params": {"w": np.arange(2000.0)}})
    for path in (tmp_path / "w").rglob("d/*"):
        path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(ValueError, match="cannot read this checkpoint"):
        weights.load_orbax(tmp_path / "w")


def test_a_directory_that_is_not_a_checkpoint_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a directory, found none"):
        weights.load_orbax(tmp_path / "nothing")
    with pytest.raises(ValueError, match="It has no file _METADATA"):
        weights.load_orbax(tmp_path)
    weights.save_orbax(tmp_path / "w", {"params": {"w": np.ones(1)}})
    with pytest.raises(ValueError, match="Its subdirectories w are"):
        weights.load_orbax_metadata(tmp_path)


# --- checkpoints of others --------------------------------------------------------------------------------------------


def test_checkpoints_of_other_programs(tmp_path):
    """A step of a CheckpointManager with sharded arrays, lists and other items."""
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    kernel = jax.device_put(jnp.arange(8.0).reshape(4, 2), jax.NamedSharding(mesh, jax.P("x")))
    tree = {"params": {"layers": [{"kernel": kernel}, {"kernel": jnp.ones(2, jnp.bfloat16)}]}, "note": {}, "n": None}
    with ocp.CheckpointManager(tmp_path / "run", options=ocp.CheckpointManagerOptions()) as manager:
        manager.save(7, args=ocp.args.StandardSave({**tree, "lr": 0.5}))
    with pytest.raises(ValueError, match="7/default"):
        weights.load_orbax(tmp_path / "run")
    found = weights.load_orbax(tmp_path / "run" / "7" / "default")
    assert all(type(array) is np.ndarray for array in found.values())
    found.pop("lr")
    given = {"params": tree["params"]}
    assert _bits(weights.fit_to(given, found)) == _bits(given)


def test_load_run_returns_the_student(tmp_path):
    states = {step: _train_state(step) for step in (1, 12)}
    with jaxkd.training.Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state)
    before = sorted(tmp_path.rglob("*"))
    template = jax.eval_shape(MODELS["linen"].init, jax.random.key(0), BATCH)
    for directory in (tmp_path / "run", tmp_path / "run" / "checkpoints"):
        for step, wanted in ((None, 12), (1, 1), (12, 12)):
            found = weights.load_run(directory, step)
            assert _bits(weights.fit_to(template, found)) == _bits(states[wanted].student)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(ValueError, match=r"expected a checkpoint of step 2, found steps \[1, 12\]"):
        weights.load_run(tmp_path / "run", 2)
    with pytest.raises(ValueError, match="expected checkpoints of a run"):
        weights.load_run(tmp_path)
    with pytest.raises(FileNotFoundError):
        weights.load_run(tmp_path / "nothing")


def test_load_run_skips_damaged_checkpoints(tmp_path):
    with jaxkd.training.Checkpoints(tmp_path) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, _train_state(step))
    template = jax.eval_shape(MODELS["linen"].init, jax.random.key(0), BATCH)
    damage = {step: next((tmp_path / str(step)).rglob("d/*")) for step in (1, 2, 3)}
    damage[3].write_bytes(b"")
    with pytest.warns(UserWarning, match=r"3: this checkpoint is damaged: .*Reading the previous one"):
        found = weights.load_run(tmp_path)
    assert _bits(weights.fit_to(template, found)) == _bits(_train_state(2).student)
    with pytest.raises(ValueError, match=r"3: this checkpoint is damaged: .*Existing steps: \[1, 2, 3\]"):
        weights.load_run(tmp_path, 3)
    for step in (1, 2):
        damage[step].unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"1: this checkpoint is damaged"):
        weights.load_run(tmp_path)


def test_load_run_decodes_escaped_names(tmp_path):
    given = jaxkd.Variables({"a/b.c": {"50%": jnp.ones(2)}}, {"stats": {"x.y": jnp.zeros(1)}})
    state = jaxkd.TrainState(given, teacher={}, objective=jaxkd.ObjectiveVars(), opt_state={}, step=0, key=0)
    with jaxkd.training.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state)
    found = weights.load_run(tmp_path)
    assert set(found) == {"params/a/b.c/50%", "stats/x.y"}
    assert _bits(weights.fit_to(given, found)) == _bits(given)


def test_cast_narrows_parameters_only(tmp_path):
    variables = Net().init(jax.random.key(0), BATCH["image"])
    small = weights.cast(variables, jnp.bfloat16)
    weights.save_safetensors(tmp_path / "w", small)
    header = json.loads(pathlib.Path(tmp_path / "w").read_bytes()[8:].partition(b"}}")[0].decode() + "}}")
    kinds = {name: entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
    assert {kind for name, kind in kinds.items() if name.startswith("params")} == {"BF16"}
    assert {kind for name, kind in kinds.items() if name.startswith("batch_stats")} == {"F32"}
