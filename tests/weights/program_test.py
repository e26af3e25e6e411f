"""An exported program returns the model's outputs at any batch size, with JAX alone."""

import hashlib
import pathlib
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxkd
from jaxkd import adapters, weights
from jaxkd.weights import _program as program_lib

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "export.md"
SCRIPT = re.compile(r"^<!-- serve\.py -->\n```python\n(.*?)^```", re.DOTALL | re.MULTILINE)

# Runs a script with JAX and its dependencies only: other imports fail.
ONLY_JAX = """
import runpy, sys
for name in ("jaxkd", "flax", "optax", "orbax", "safetensors"):
    sys.modules[name] = None
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        return nn.Dense(3)(x.reshape(x.shape[0], -1))


MODEL = adapters.linen(Net(), taps={"conv": "Conv_0"})
IMAGE = {"image": jax.ShapeDtypeStruct((1, 5, 5, 2), jnp.float32)}


def _variables():
    rng = np.random.default_rng(0)
    like = jax.eval_shape(MODEL.init, jax.random.key(0), IMAGE)
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(0.1, 1, x.shape), x.dtype), like)


def _images(size, dtype=np.float32):
    return np.random.default_rng(size).integers(0, 256, (size, 5, 5, 2), np.uint8).astype(dtype)


def _load(path):
    return export.deserialize(bytearray(path.read_bytes()))


def _scaled(batch):
    return {**batch, "image": batch["image"].astype(jnp.float32) / 255}


def test_the_script_in_the_docs_serves_without_jaxkd(tmp_path):
    (script,) = SCRIPT.findall(PAGE.read_text(encoding="utf-8"))
    assert len(script.splitlines()) <= 10
    (tmp_path / "serve.py").write_text(script)
    weights.save_program(tmp_path / "student.jax", MODEL, variables := _variables(), IMAGE)
    sizes = (1, 3, 17)
    for size in sizes:
        np.save(tmp_path / f"{size}.npy", _images(size))
    command = [sys.executable, "-W", "error", "-c", ONLY_JAX, "serve.py", "student.jax", *(f"{n}.npy" for n in sizes)]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    live = jax.jit(lambda v, b: MODEL.apply(v, b, key=None, train=False)[0]["logits"])
    for size in sizes:
        found = np.load(tmp_path / f"{size}.npy.logits.npy")
        np.testing.assert_allclose(found, live(variables, {"image": _images(size)}), rtol=1e-6)


def test_a_program_is_exported_for_the_requested_platforms(tmp_path):
    weights.save_program(tmp_path / "all", MODEL, _variables(), IMAGE)
    assert _load(tmp_path / "all").platforms == ("cpu", "cuda", "tpu")
    weights.save_program(tmp_path / "one", MODEL, _variables(), IMAGE, platforms=["tpu"])
    assert _load(tmp_path / "one").platforms == ("tpu",)
    for platforms in ([], "cpu", ["gpu"]):
        with pytest.raises(ValueError, match=r"platforms: expected some of \['cpu', 'cuda', 'rocm', 'tpu'\]"):
            weights.save_program(tmp_path / "no", MODEL, _variables(), IMAGE, platforms=platforms)


def test_preprocessing_and_taps_are_exported(tmp_path):
    raw = {"image": np.zeros((4, 5, 5, 2), np.uint8)}
    variables = _variables()
    weights.save_program(tmp_path / "p", MODEL, variables, raw, preprocess=_scaled, output_names=None)
    program = _load(tmp_path / "p")
    image = _images(3, np.uint8)
    found = program.call({"image": image})
    wanted, _ = MODEL.apply(variables, _scaled({"image": image}), key=None, train=False)
    assert found.keys() == {"logits", "conv"}
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, atol=1e-5)
    assert [str(x.shape) for x in program.out_avals] == ["(batch, 5, 5, 4)", "(batch, 3)"]
    weights.save_program(tmp_path / "q", MODEL, variables, raw, preprocess=_scaled, output_names=["conv"])
    assert _load(tmp_path / "q").call({"image": image}).keys() == {"conv"}
    with pytest.raises(ValueError, match=r"output 'cnv': there is no such name \(did you mean 'conv'\?\)"):
        weights.save_program(tmp_path / "r", MODEL, variables, raw, preprocess=_scaled, output_names=["cnv"])


def test_weights_are_stored_in_their_dtype(tmp_path):
    model = adapters.linen(nn.Dense(500))
    batch = {"image": jax.ShapeDtypeStruct((1, 400), jnp.float32)}
    variables = model.init(jax.random.key(0), {"image": jnp.zeros((1, 400))})
    weights.save_program(tmp_path / "f32", model, variables, batch)
    weights.save_program(tmp_path / "bf16", model, small := weights.cast(variables, jnp.bfloat16), batch)
    sizes = [(tmp_path / name).stat().st_size for name in ("f32", "bf16")]
    assert 800_000 < sizes[0] < 830_000 and 400_000 < sizes[1] < 430_000
    image = np.random.default_rng(0).normal(size=(2, 400)).astype(np.float32)
    found = _load(tmp_path / "bf16").call({"image": image})["logits"]
    wanted = jax.jit(lambda b: model.apply(small, b, key=None, train=False)[0]["logits"])({"image": image})
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_the_student_of_a_train_state_is_exported(tmp_path):
    variables = _variables()
    state = jaxkd.TrainState(variables, {"w": jnp.ones(2)}, jaxkd.ObjectiveVars({"w": jnp.ones(3)}), {}, 0, None)
    weights.save_program(tmp_path / "a", MODEL, state, IMAGE)
    weights.save_program(tmp_path / "b", MODEL, variables, IMAGE)
    image = _images(2)
    found, wanted = (_load(tmp_path / name).call({"image": image})["logits"] for name in "ab")
    np.testing.assert_array_equal(found, wanted)


def test_sharded_weights_are_not_bound_to_devices(tmp_path):
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    model = adapters.plain(lambda key, x: jnp.ones((4, 2)), lambda w, x: x @ w)
    weight = jax.device_put(jnp.arange(8.0).reshape(4, 2), jax.NamedSharding(mesh, jax.P("x")))
    image = {"image": jnp.ones((1, 4))}
    weights.save_program(tmp_path / "p", model, jaxkd.Variables(weight), image)
    program = _load(tmp_path / "p")
    assert program.nr_devices == 1
    np.testing.assert_array_equal(program.call({"image": np.ones((1, 4), np.float32)})["logits"], [[12.0, 16.0]])


def test_a_damaged_program_is_refused(tmp_path):
    model = adapters.plain(lambda key, x: jnp.ones((3, 2)), lambda w, x: x @ w, inputs="x")
    path, batch = tmp_path / "p", {"x": np.ones((2, 3), np.float32)}
    weights.save_program(path, model, jaxkd.Variables(jnp.ones((3, 2))), batch)
    for load in (weights.load_program, _load):  # jax.export ignores the digest
        np.testing.assert_array_equal(load(path).call(batch)["logits"], np.full((2, 2), 3.0))
    content = path.read_bytes()
    assert hashlib.sha256(content[:-32]).digest() == content[-32:]
    damaged = [
        content[:byte] + bytes([content[byte] ^ 1 << byte % 8]) + content[byte + 1 :] for byte in range(len(content))
    ]
    for other in (*damaged, content[:-1], content[:-32], content + b"x", b"", b"x"):
        path.write_bytes(other)
        with pytest.raises(ValueError, match=r"expected a program that save_program wrote.*The file is damaged or cut"):
            weights.load_program(path)


def test_symbolic_dimensions(tmp_path):
    model = adapters.plain(lambda key, *x: None, lambda w, x, y: (x * y[:, None]).sum(1) * w, inputs=("x", "y"))
    variables = jaxkd.Variables(jnp.float32(2))
    batch = {"x": jnp.ones((3, 4)), "y": jnp.ones(3)}
    weights.save_program(tmp_path / "p", model, variables, batch)
    ones = {"x": np.ones((7, 4), np.float32), "y": np.ones(7, np.float32)}
    np.testing.assert_array_equal(_load(tmp_path / "p").call(ones)["logits"], np.full(7, 8))
    size, length = export.symbolic_shape("size, length")
    batch = {"x": jax.ShapeDtypeStruct((size, length), jnp.float32), "y": jax.ShapeDtypeStruct((size,), jnp.float32)}
    weights.save_program(tmp_path / "q", model, variables, batch)
    ones["x"] = np.ones((7, 9), np.float32)
    np.testing.assert_array_equal(_load(tmp_path / "q").call(ones)["logits"], np.full(7, 18))
    with pytest.raises(ValueError, match="one leading dimension"):
        weights.save_program(tmp_path / "r", model, variables, {"x": jnp.ones((3, 4)), "y": jnp.ones(2)})


@pytest.mark.parametrize(
    "apply",
    [
        lambda w, x: x.reshape(3, -1),
        lambda w, x: x.reshape(len(x), -1) @ w,
        lambda w, x: x @ w if x.shape[0] > 2 else x @ w * 2,
        lambda w, x: jnp.stack([x[i] for i in range(x.shape[0])]) @ w,
        lambda w, x: x @ w / float(x.shape[0]),
        lambda w, x: x @ w * np.ones(x.shape[0])[:, None],
        lambda w, x: jnp.concatenate(jnp.split(x, x.shape[0])) @ w,
    ],
    ids=("number", "len", "branch", "loop", "float", "numpy", "split"),
)
def test_a_model_that_depends_on_the_batch_size_is_an_error(tmp_path, apply):
    model = adapters.plain(lambda key, x: None, apply)
    with pytest.raises(ValueError, match="expected one that does not depend on the size of the batch"):
        weights.save_program(tmp_path / "p", model, jaxkd.Variables(jnp.ones((4, 2))), {"image": jnp.ones((3, 4))})


def test_a_model_that_fails_for_every_size_fails_with_its_own_error(tmp_path):
    model = adapters.plain(lambda key, x: None, lambda w, x: x @ w[:3])
    with pytest.raises(TypeError, match="dot_general"):
        weights.save_program(tmp_path / "p", model, jaxkd.Variables(jnp.ones((4, 2))), {"image": jnp.ones((3, 4))})


def test_weights_above_the_limit_are_an_error(tmp_path, monkeypatch):
    assert 2**31 > program_lib._LIMIT > 0.99 * 2**31
    monkeypatch.setattr(program_lib, "_LIMIT", 100)
    with pytest.raises(ValueError, match="expected less than 2 GiB of weights"):
        weights.save_program(tmp_path / "p", MODEL, _variables(), IMAGE)


def test_overwriting_has_to_be_requested(tmp_path):
    weights.save_program(tmp_path / "p", MODEL, _variables(), IMAGE)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        weights.save_program(tmp_path / "p", MODEL, _variables(), IMAGE)
    weights.save_program(tmp_path / "p", MODEL, _variables(), IMAGE, overwrite=True)


def test_a_program_of_the_oldest_supported_jax_still_runs():
    """program_jax_0_10_2.bin is the "p" of test_preprocessing_and_taps_are_exported. JAX guarantees six months.

    If a newer JAX cannot read it, the guarantee has ended: export the file again with the oldest supported version.
    """
    found = _load(pathlib.Path(__file__).with_name("program_jax_0_10_2.bin"))
    image = _images(3, np.uint8)
    wanted, _ = MODEL.apply(_variables(), _scaled({"image": image}), key=None, train=False)
    np.testing.assert_allclose(found.call({"image": image})["logits"], wanted["logits"], rtol=1e-5)
