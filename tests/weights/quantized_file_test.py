"""Quantized weights on disk: packed bits, exact sizes, and the weights of the forward pass."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from jaxkd import ObjectiveVars, TrainState, Variables, adapters, weights
from jaxkd.weights import load_quantized, quantized_size, save_quantized
from jaxkd.weights._quantized_file import _pack, _unpack
from jaxkd.wrappers import init_codebook, learned_codebook, quantize, quantized
from tests import tiny

KEY = jax.random.key(0)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(7, (3, 3))(x)))
        return nn.Dense(3)(nn.Dense(11)(x.mean(axis=(1, 2))))


MODEL = adapters.linen(Net())
VARIABLES = jax.tree.map(
    lambda x: x + np.abs(np.random.default_rng(x.size).normal(size=x.shape)).astype(np.float32),
    MODEL.init(KEY, tiny.batch(2)),
)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_packed_without_gaps(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, 101).astype(np.uint8)
    packed = _pack(codes, bits)
    assert packed.nbytes == -(-101 * bits // 8)
    assert int.from_bytes(packed.tobytes(), "little") == sum(int(c) << (i * bits) for i, c in enumerate(codes))
    np.testing.assert_array_equal(_unpack(packed, bits, 101), codes)


@pytest.mark.slow
@pytest.mark.parametrize("bits, bucket", [(2, 256), (4, 16), (8, 100), (3, None), (5, 7)])
def test_loaded_weights_are_those_of_the_forward_pass(tmp_path, bits, bucket):
    path = tmp_path / "net.safetensors"
    size = save_quantized(path, VARIABLES, bits=bits, bucket=bucket)
    loaded = load_quantized(path)
    tiny.assert_equal(loaded.params, quantize(VARIABLES.params, bits=bits, bucket=bucket))
    tiny.assert_equal(loaded.state, VARIABLES.state)
    model, batch = quantized(MODEL, bits=bits, bucket=bucket), tiny.batch(4)
    forward = lambda model: jax.jit(lambda v: model.apply(v, batch, key=None, train=False)[0])  # noqa: E731
    tiny.assert_close(forward(MODEL)(loaded), forward(model)(VARIABLES), rtol=1e-6, atol=1e-7)
    dense = forward(MODEL)(VARIABLES._replace(params=quantize(VARIABLES.params, bits=bits, bucket=bucket)))
    tiny.assert_equal(forward(MODEL)(loaded), dense)
    # Size of the file: codes, two float32 numbers per bucket, all other arrays in float32, and the header.
    quantities = [x.size for name, x in weights.flatten(VARIABLES).items() if name.endswith("kernel")]
    assert size.codes == sum(-(-n * bits // 8) for n in quantities)
    assert size.scales == sum(8 * -(-n // (bucket or n)) for n in quantities)
    values = sum(x.size for x in jax.tree.leaves(VARIABLES))
    assert (size.rest, size.values) == (4 * (values - sum(quantities)), values)
    raw = path.read_bytes()
    assert size.header == 8 + int.from_bytes(raw[:8], "little")
    assert size.total == len(raw) == path.stat().st_size
    assert size.ratio == 4 * values / len(raw)
    assert quantized_size(path) == size


def test_compression_ratio_of_a_large_model(tmp_path):
    w = {"params": {"w": np.random.default_rng(0).normal(size=(1024, 1024)).astype(np.float32)}}
    found = {bits: save_quantized(tmp_path / f"{bits}", w, bits=bits).ratio for bits in (2, 4, 8)}
    for bits, ratio in found.items():  # 64 bits of scale and offset per bucket of 256
        assert ratio == pytest.approx(32 / (bits + 0.25), rel=2e-3)


@pytest.mark.slow
def test_learned_points_are_stored(tmp_path):
    model = learned_codebook(MODEL, VARIABLES, bits=3, bucket=32)
    state = model.init(KEY, tiny.batch(2))
    moved = jax.tree.map(lambda p: p[::-1] * 0.93 + 0.011, state.params)
    batch, path = tiny.batch(4), tmp_path / "net.safetensors"
    size = save_quantized(path, VARIABLES, codebook=moved, bucket=32)
    loaded = load_quantized(path)
    tiny.assert_equal(loaded.params, quantized_to(moved))
    forward = lambda model: jax.jit(lambda v: model.apply(v, batch, key=None, train=False)[0])  # noqa: E731
    tiny.assert_close(forward(MODEL)(loaded), forward(model)(state._replace(params=moved)), rtol=1e-6, atol=1e-7)
    kernels = [x.size for name, x in weights.flatten(VARIABLES).items() if name.endswith("kernel")]
    assert size.codes == sum(-(-n * 3 // 8) for n in kernels)
    assert size.scales == sum(8 * -(-n // 32) + 4 * 8 for n in kernels)
    assert size.total == path.stat().st_size


def quantized_to(points):
    from jaxkd.wrappers import quantize_with

    return jax.jit(lambda p: quantize_with(VARIABLES.params, p, bucket=32))(points)


@pytest.mark.slow
def test_sources_of_every_form(tmp_path):
    """The student of a train state, other dtypes, other trees, one array."""
    state = TrainState(VARIABLES, (), ObjectiveVars(), {}, jnp.int32(0), KEY)
    save_quantized(tmp_path / "state", state, bits=2)
    tiny.assert_equal(load_quantized(tmp_path / "state").params, quantize(VARIABLES.params, bits=2))

    half = {"params": {"w": jnp.asarray(np.linspace(-1, 1, 33)[None], jnp.bfloat16), "n": jnp.arange(3)}}
    save_quantized(tmp_path / "half", half, bits=3, bucket=8)
    loaded = load_quantized(tmp_path / "half").params
    assert loaded["w"].dtype == jnp.bfloat16
    tiny.assert_equal(loaded, quantize(half["params"], bits=3, bucket=8))

    nested = Variables([jnp.eye(2), (jnp.ones(3),)])
    save_quantized(tmp_path / "list", nested, bits=1)
    found = weights.fit_to(nested, weights.flatten(load_quantized(tmp_path / "list")))
    tiny.assert_equal(found.params, nested.params)

    single = Variables(jnp.linspace(0.0, 1.0, 9).reshape(3, 3))
    save_quantized(tmp_path / "one", single, bits=4)
    tiny.assert_equal(load_quantized(tmp_path / "one").params, quantize(single.params, bits=4))
    points = init_codebook(single.params, bits=2)
    save_quantized(tmp_path / "points", single, codebook=points)
    assert len(np.unique(load_quantized(tmp_path / "points").params)) == 4


def test_metadata_and_overwriting(tmp_path):
    path = tmp_path / "net"
    save_quantized(path, VARIABLES, include="Dense", metadata={"accuracy": "0.75"})
    found = weights.load_safetensors_metadata(path)
    assert found["accuracy"] == "0.75"
    assert set(json.loads(found["quantized"])["tensors"]) == {
        f"params/Dense_{i}/{p}" for i in (0, 1) for p in ("kernel", "bias")
    }
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_quantized(path, VARIABLES)
    save_quantized(path, VARIABLES, bits=8, overwrite=True)
    tiny.assert_equal(load_quantized(path).params, quantize(VARIABLES.params, bits=8))
    assert [p.name for p in tmp_path.iterdir()] == ["net"]


def test_errors_name_what_was_expected(tmp_path):
    path = tmp_path / "net"
    with pytest.raises(ValueError, match=r"save_quantized, bits: expected .* 1 to 8, got 16"):
        save_quantized(path, VARIABLES, bits=16)
    with pytest.raises(ValueError, match="include='nothing'"):
        save_quantized(path, VARIABLES, include="nothing")
    with pytest.raises(ValueError, match=r"'w': expected finite weights"):
        save_quantized(path, {"params": {"w": jnp.array([[1.0, jnp.nan]])}})
    with pytest.raises(ValueError, match=r"expected include= or codebook=, got both"):
        save_quantized(path, VARIABLES, codebook={"Dense_0": {"kernel": jnp.ones(2)}}, include="Dense")
    with pytest.raises(ValueError, match=r"tensor 'Dense_9/kernel'"):
        save_quantized(path, VARIABLES, codebook={"Dense_9": {"kernel": jnp.ones(2)}})
    assert not path.exists()
    weights.save_safetensors(path, VARIABLES)
    for read in (load_quantized, quantized_size):
        with pytest.raises(ValueError, match="expected a file that save_quantized wrote"):
            read(path)
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "nowhere")
    save_quantized(path, VARIABLES, overwrite=True)
    arrays, header = weights.load_safetensors(path), weights.load_safetensors_metadata(path)
    for name, changed in {"#codes": np.zeros(3, np.uint8), "#offset": np.zeros((2, 2, 2), np.float32)}.items():
        broken = {**arrays, f"params/Dense_0/kernel/{name}": changed}
        safetensors.numpy.save_file(broken, path, metadata=header)
        with pytest.raises(ValueError, match="header of quantized weights does not match the arrays"):
            load_quantized(path)
    del arrays["params/Dense_0/kernel/#step"]
    safetensors.numpy.save_file(arrays, path, metadata=header)
    with pytest.raises(ValueError, match="header of quantized weights does not match the arrays"):
        load_quantized(path)
