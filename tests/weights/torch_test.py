"""PyTorch weights in Flax give the outputs that PyTorch computed in make_torch_golden.py."""

import pathlib
import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import jaxkd
from jaxkd import adapters, models, weights
from jaxkd.weights import layouts

GOLDEN = weights.load_safetensors(pathlib.Path(__file__).with_name("torch_golden.safetensors"))


def _case(name):
    state = {key.removeprefix(f"{name}/state/"): v for key, v in GOLDEN.items() if key.startswith(f"{name}/state/")}
    return state, GOLDEN[f"{name}/input"], GOLDEN[f"{name}/output"]


def _channels_last(x):
    return np.moveaxis(x, 1, -1) if x.ndim > 2 else x


def _check(module, name, *, inputs=_channels_last, outputs=_channels_last, state=None, rtol=2e-6, **options):
    given, x, wanted = _case(name)
    given = given if state is None else state(given)
    template = jax.eval_shape(module.init, jax.random.key(0), inputs(x))
    variables = weights.fit_torch_to(template, given, ignore=weights.NUM_BATCHES_TRACKED, **options)
    found = jax.jit(module.apply)(variables, inputs(x))
    np.testing.assert_allclose(found, outputs(wanted), rtol=rtol, atol=rtol * np.abs(wanted).max())
    return variables


LAYERS = {
    "linear": nn.Dense(4),
    "conv1d": nn.Conv(3, (3,), strides=2, padding=1),
    "conv2d": nn.Conv(4, (3, 2), strides=2, padding=1),
    "conv3d": nn.Conv(3, (2, 2, 2), padding=0),
    "grouped": nn.Conv(6, (3, 3), padding=1, feature_group_count=2),
    "depthwise": nn.Conv(6, (3, 3), padding=1, feature_group_count=3),
    "batch_norm": nn.BatchNorm(use_running_average=True),
    "layer_norm": nn.LayerNorm(epsilon=1e-5),
    "group_norm": nn.GroupNorm(num_groups=2, epsilon=1e-5),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_equal_pytorch(name):
    _check(LAYERS[name], name)


def test_embedding_equals_pytorch():
    _check(nn.Embed(7, 3), "embedding", inputs=lambda x: x.astype(np.int32), outputs=lambda x: x)


class Up(nn.Module):
    features: int
    window: tuple
    padding: tuple
    transpose_kernel: bool = False

    @nn.compact
    def __call__(self, x):
        return nn.ConvTranspose(
            self.features,
            self.window,
            strides=(2,) * len(self.window),
            padding=self.padding,
            transpose_kernel=self.transpose_kernel,
        )(x)


@pytest.mark.parametrize("transpose_kernel", [False, True])
@pytest.mark.parametrize(
    "name, features, window, padding",
    [
        ("conv_transpose", 4, (3, 3), ((1, 2), (1, 2))),  # window 3, padding 1, output padding 1
        ("conv_transpose_square", 3, (4,), ((2, 2),)),  # square: shapes do not show a wrong transposition
    ],
)
def test_transposed_convolutions_equal_pytorch(name, features, window, padding, transpose_kernel):
    special = {"ConvTranspose_0/kernel": layouts.conv} if transpose_kernel else None
    names = lambda name: f"ConvTranspose_0/{name}"  # noqa: E731
    _check(Up(features, window, padding, transpose_kernel), name, names=names, layouts=special)


class Flattened(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(3, (3, 3), padding=1)(x))
        return nn.Dense(6)(x.reshape(x.shape[0], -1))


def test_a_flattened_map_needs_its_layout():
    names = {"conv": "Conv_0", "fc": "Dense_0"}
    _check(Flattened(), "flattened", names=names, layouts={"Dense_0/kernel": layouts.after_flatten(3, 4, 5)})
    with pytest.raises(AssertionError, match="Not equal to tolerance"):  # the shape fits nevertheless
        _check(Flattened(), "flattened", names=names)


def test_attention_equals_pytorch():
    heads = {"(query|key|value)/.*": layouts.into_heads(2), "out/kernel": layouts.out_of_heads(2)}
    _check(
        nn.MultiHeadDotProductAttention(2),
        "attention",
        inputs=lambda x: x,
        outputs=lambda x: x,
        state=lambda state: weights.split_attention(state, "attn"),
        names=[(r"^attn\.", "")],
        layouts=heads,
    )


def test_lstm_equals_pytorch():
    for cell in (nn.LSTMCell, nn.OptimizedLSTMCell):
        module = nn.RNN(cell(4, name="cell"))
        _check(
            module,
            "lstm",
            inputs=lambda x: x,
            outputs=lambda x: x,
            state=lambda state: weights.split_lstm(state, "lstm"),
            names={"lstm": "cell"},
        )


@pytest.mark.parametrize("name, depth, filters", [("resnet8", 8, (2, 2, 4, 6)), ("resnet14_wide", 14, (2, 4, 6, 8))])
def test_cifar_resnets_equal_pytorch(name, depth, filters):
    """The second has a projection shortcut in its first stage, as resnet32x4, and blocks without one."""
    module = models.ResNet(depth=depth, num_filters=filters, num_classes=5)
    variables = _check(module, name, names=weights.torch_cifar_resnet(depth))
    # As a teacher.
    _, x, wanted = _case(name)
    batch = {"image": _channels_last(x)}
    teacher = jaxkd.teachers.frozen(adapters.linen(module), variables)
    found = jax.jit(lambda state: teacher.apply(state, batch, key=None))(teacher.init(None, batch, None))["logits"]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_cifar_resnet_names_cover_all_depths_and_report_extra_blocks():
    for name in ("resnet56", "resnet32x4"):
        module = models.create(name, num_classes=3)
        template = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
        names = weights.torch_cifar_resnet(module.depth)
        modules = {path.partition("/")[2].rpartition("/")[0] for path in weights.flatten(template)}
        assert modules <= set(names.values())
    with pytest.raises(weights.WeightsError, match=r"unused: 'layer1\.1\.conv1\.weight'"):
        _check(models.ResNet(depth=8, num_filters=(2, 4, 6, 8), num_classes=5), "resnet14_wide", names=names)
    with pytest.raises(ValueError, match=r"expected 6 n \+ 2"):
        weights.torch_cifar_resnet(18)


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 3, (3, 3), padding=1, rngs=rngs)
        self.fc = nnx.Linear(60, 6, rngs=rngs)

    def __call__(self, x):
        return self.fc(nnx.relu(self.conv(x)).reshape(x.shape[0], -1))


def test_fit_torch_to_nnx():
    state, x, wanted = _case("flattened")
    model, batch = adapters.nnx(NnxNet), {"image": _channels_last(x)}
    template = jax.eval_shape(model.init, jax.random.key(0), batch)
    variables = weights.fit_torch_to(template, state, layouts={"fc/kernel": layouts.after_flatten(3, 4, 5)})
    found = model.apply(variables, batch, key=None, train=False)[0]["logits"]
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=2e-6)
    norm, (state, x, wanted) = nnx.BatchNorm(3, use_running_average=True, rngs=nnx.Rngs(0)), _case("batch_norm")
    variables = weights.fit_torch_to(norm, state, ignore=weights.NUM_BATCHES_TRACKED)
    nnx.replace_by_pure_dict(state := nnx.state(norm), {**variables.params, **variables.state})
    nnx.update(norm, state)
    np.testing.assert_allclose(norm(_channels_last(x)), _channels_last(wanted), rtol=2e-6, atol=2e-6)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_num_batches_tracked_has_to_be_ignored_explicitly():
    state, _, _ = _case("batch_norm")
    template = jax.eval_shape(LAYERS["batch_norm"].init, jax.random.key(0), jnp.ones((1, 2, 2, 3)))
    with pytest.raises(weights.WeightsError, match=r"1 unused\.\n.*(\n.*)*ignore=weights\.NUM_BATCHES_TRACKED"):
        weights.fit_torch_to(template, state)


def test_the_prefix_of_data_parallel_is_recognized():
    state = {f"module.{name}": value for name, value in _case("linear")[0].items()}
    template = jax.eval_shape(nn.Dense(4).init, jax.random.key(0), jnp.ones((1, 4)))
    with pytest.raises(
        weights.WeightsError, match=r"DataParallel adds the prefix: pass names=\[\(r'\^module\\\.', ''\), \.\.\.\]"
    ):
        weights.fit_torch_to(template, state)
    weights.fit_torch_to(template, state, names=[(r"^module\.", "")])


def test_a_shape_mismatch_is_reported_in_the_layout_of_the_model():
    state = {"weight": np.ones((5, 4), np.float32), "bias": np.ones(4, np.float32)}
    template = jax.eval_shape(nn.Dense(5).init, jax.random.key(0), jnp.ones((1, 5)))
    with pytest.raises(weights.WeightsError) as caught:
        weights.fit_torch_to(template, state)
    assert caught.value.problems == (
        "mismatched: 'weight' float32[5, 4] for params/kernel float32[5, 5]: laid out as [4, 5]",
        "mismatched: 'bias' float32[4] for params/bias float32[5]: laid out as [4]",
    )


def test_a_layout_that_does_not_apply_is_reported():
    state = _case("linear")[0]
    template = jax.eval_shape(nn.Dense(4).init, jax.random.key(0), jnp.ones((1, 4)))
    for layout, message in [
        (layouts.conv, r"expected \[out, in / groups, \*window\], got float32\[4, 4\]"),
        (layouts.after_flatten(3, 2), r"expected \[out, 6\] for a map of 3 × \(2,\), got \[4, 4\]"),
        (layouts.into_heads(3), "expected axis 0 to divide into 3 heads"),
        (layouts.out_of_heads(3), "expected axis 1 to divide into 3 heads"),
    ]:
        with pytest.raises(weights.WeightsError, match=message):
            weights.fit_torch_to(template, state, layouts={"kernel": layout})
    with pytest.raises(ValueError, match=r"layouts: 'kernal' matches no array of the model\. It has params/bias"):
        weights.fit_torch_to(template, state, layouts={"kernal": layouts.linear})
    transposed = weights.fit_torch_to(template, state, layouts={"params/kernel": layouts.as_is})
    np.testing.assert_array_equal(transposed["params"]["kernel"], state["weight"])


def test_splitting_another_module_is_an_error():
    state, _, _ = _case("attention")
    with pytest.raises(ValueError, match="module 'atn': there is no such name"):
        weights.split_attention(state, "atn")
    with pytest.raises(
        ValueError, match=r"expected the arrays of a MultiheadAttention, got also 'bias_k' float32\[1\]"
    ):
        weights.split_attention(state | {"attn.bias_k": np.ones(1, np.float32)}, "attn")
    state, _, _ = _case("lstm")
    with pytest.raises(
        ValueError, match="expected the arrays of an LSTM of one layer and direction, got also 'weight_ih_l1'"
    ):
        weights.split_lstm(state | {"lstm.weight_ih_l1": np.ones(1, np.float32)}, "lstm")
    with pytest.raises(ValueError, match="missing: bias_hh"):
        weights.split_lstm({k: v for k, v in state.items() if k != "lstm.bias_hh_l0"}, "lstm")


# --- reading ----------------------------------------------------------------------------------------------------------


class Tensor:
    """Fake tensor: on another device, tracked by autograd, without conversion of dtypes that NumPy lacks."""

    def __init__(self, array, steps=()):
        self.array, self.steps, self.dtype = array, steps, f"torch.{array.dtype}"

    def detach(self):
        return Tensor(self.array, (*self.steps, "detach"))

    def cpu(self):
        return Tensor(self.array, (*self.steps, "cpu"))

    def float(self):
        return Tensor(self.array.astype(np.float32), self.steps)

    def numpy(self):
        assert self.steps == ("detach", "cpu")
        if self.array.dtype.name in ("bfloat16", "float8_e4m3fn"):
            raise TypeError("Got unsupported ScalarType")
        return self.array


DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn]
ARRAYS = [np.full(shape, 1.5, dtype) for dtype in DTYPES for shape in ((), (3,), (0,))]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda a: f"{a.dtype}{a.shape}")
def test_tensors_preserve_dtype_and_bits(array):
    found = weights.load_torch({"a": Tensor(array), "b": array})
    for value in found.values():
        assert isinstance(value, np.ndarray) and value.dtype == array.dtype and value.shape == array.shape
        assert value.tobytes() == array.tobytes()


def test_a_safetensors_file_needs_no_torch(tmp_path):
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(pathlib.Path(__file__).with_name("torch_golden.safetensors").read_bytes())
    assert weights.load_torch(path).keys() == GOLDEN.keys()


def test_pickles_are_read_by_torch(tmp_path, monkeypatch):
    path = tmp_path / "teacher.pth"
    with pytest.raises(FileNotFoundError, match="expected a file, found none"):
        weights.load_torch(path)
    path.write_bytes(b"pickle")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"PyTorch is not installed.*safetensors\.torch\.save_file"):
        weights.load_torch(path)

    def load(file, *, map_location, weights_only):
        assert (file, map_location, weights_only) == (path, "cpu", True)
        return {"model": {"fc.bias": Tensor(np.ones(2))}, "epoch": 3}

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=load))
    assert list(weights.load_torch(path, state_dict_key="model")) == ["fc.bias"]
    with pytest.raises(TypeError, match=r"'model': expected a tensor, got dict\..*load_torch\(\.\.\., key='model'\)"):
        weights.load_torch(path)
    with pytest.raises(ValueError, match=r"key 'modle': there is no such name \(did you mean 'model'\?\)"):
        weights.load_torch(path, state_dict_key="modle")

    def refuse(*args, **kwargs):
        raise RuntimeError("Unsupported global")

    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(load=refuse))
    with pytest.raises(ValueError, match=r"Unsupported global If you trust the file, load it yourself"):
        weights.load_torch(path)


def test_sources_that_are_not_state_dicts_are_errors():
    with pytest.raises(TypeError, match="expected a state dict, names to tensors, or a path, got int"):
        weights.load_torch(3)
    with pytest.raises(TypeError, match=r"Pass its state_dict\(\)"):
        weights.load_torch(types.SimpleNamespace(state_dict=dict))
    with pytest.raises(TypeError, match="expected a mapping around the state dict"):
        weights.load_torch(3, state_dict_key="model")
