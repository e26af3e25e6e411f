"""ResNet50, MobileNetV2 and ShuffleNets from PyTorch state dicts: taps and logits equal float64 NumPy references.

The references are written in PyTorch's layouts and names, from the published description of each network. Each layer
draws its weights by name and shape and adds them to the state dict, which therefore has no unused names.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters, weights
from jaxkd.models.vision import _mobilenet_v2, _resnet50, _shufflenet_v1, _shufflenet_v2
from jaxkd.weights import _torch_light


class Net:
    """PyTorch's layers, ``[batch, channels, height, width]``, and the state dict that they draw."""

    def __init__(self, seed):
        self.rng = np.random.default_rng(seed)
        self.state = {}

    def weight(self, name, draw):
        assert name not in self.state, name
        self.state[name] = np.asarray(draw, np.float32)
        return self.state[name].astype(np.float64)

    def conv(self, x, name, out, size=1, stride=1, groups=1):
        inputs = x.shape[1] // groups
        fan_in = inputs * size * size
        kernel = self.rng.normal(size=(out, inputs, size, size)) * np.sqrt(2 / fan_in)
        kernel = self.weight(f"{name}.weight", kernel).reshape(groups, out // groups, fan_in)
        pad = size // 2
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
        batch, _, height, width, *_ = windows.shape
        # [batch, groups, inputs, height, width, size, size] to one matrix per group.
        windows = windows.reshape(batch, groups, inputs, height, width, size, size)
        windows = windows.transpose(1, 2, 5, 6, 0, 3, 4).reshape(groups, fan_in, -1)
        y = (kernel @ windows).reshape(groups, out // groups, batch, height, width)
        return y.transpose(2, 0, 1, 3, 4).reshape(batch, out, height, width)

    def norm(self, x, name):
        size = x.shape[1]
        scale = self.weight(f"{name}.weight", self.rng.uniform(0.5, 1.5, size))
        bias = self.weight(f"{name}.bias", self.rng.normal(size=size) * 0.3)
        mean = self.weight(f"{name}.running_mean", self.rng.normal(size=size) * 0.3)
        var = self.weight(f"{name}.running_var", self.rng.uniform(0.5, 2.0, size))
        self.state[f"{name}.num_batches_tracked"] = np.asarray(7)
        scale, bias, mean, var = (array[:, None, None] for array in (scale, bias, mean, var))
        return (x - mean) / np.sqrt(var + 1e-5) * scale + bias

    def conv_norm(self, x, conv, norm, *shape, **options):
        return self.norm(self.conv(x, conv, *shape, **options), norm)

    def linear(self, x, name, out):
        weight = self.weight(f"{name}.weight", self.rng.normal(size=(out, x.shape[1])) / np.sqrt(x.shape[1]))
        return x @ weight.T + self.weight(f"{name}.bias", self.rng.normal(size=out))


def relu(x):
    return np.maximum(x, 0)


def resnet50_reference(net, x):
    out = {"stem": (x := relu(net.conv_norm(x, "conv1", "bn1", 64, 3)))}
    for stage, (blocks, features) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}.", 2 if stage > 1 and block == 0 else 1
            y = relu(net.conv_norm(x, f"{name}conv1", f"{name}bn1", features))
            y = relu(net.conv_norm(y, f"{name}conv2", f"{name}bn2", features, 3, stride))
            y = net.conv_norm(y, f"{name}conv3", f"{name}bn3", 4 * features)
            if block == 0:
                x = net.conv_norm(x, f"{name}shortcut.0", f"{name}shortcut.1", 4 * features, 1, stride)
            x = relu(before := x + y)
        out |= {f"stage{stage}": x, f"stage{stage}_preact": before}
    out["pooled"] = x.mean((2, 3))
    return out | {"logits": net.linear(out["pooled"], "linear", 100)}


def mobilenet_v2_reference(net, x):
    out = {"stem": (x := relu(net.conv_norm(x, "conv1.0", "conv1.1", 16, 3, 2)))}
    rows = [(1, 8, 1, 1), (6, 12, 2, 1), (6, 16, 3, 2), (6, 32, 4, 2), (6, 48, 3, 1), (6, 80, 3, 2), (6, 160, 1, 1)]
    for row, (expansion, features, blocks, first_stride) in enumerate(rows):
        for block in range(blocks):
            name, stride = f"blocks.{row}.{block}.conv.", first_stride if block == 0 else 1
            inside = expansion * x.shape[1]
            y = relu(net.conv_norm(x, f"{name}0", f"{name}1", inside))
            y = relu(net.conv_norm(y, f"{name}3", f"{name}4", inside, 3, stride, groups=inside))
            y = net.conv_norm(y, f"{name}6", f"{name}7", features)
            x = x + y if stride == 1 and x.shape == y.shape else y
        if row in (1, 2, 4, 6):
            stage = (1, 2, 4, 6).index(row) + 1
            out |= {f"stage{stage}": x, f"stage{stage}_preact": x}
    x = relu(net.conv_norm(x, "conv2.0", "conv2.1", 1280))
    out["pooled"] = x.mean((2, 3))
    return out | {"logits": net.linear(out["pooled"], "classifier.0", 100)}


def shuffled(x, groups):
    """Channel j of group i becomes channel j · groups + i."""
    size = x.shape[1] // groups
    return np.stack([x[:, i * size + j] for j in range(size) for i in range(groups)], axis=1)


def average_3x3(x):
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2].mean((4, 5))


def shufflenet_v1_reference(net, x):
    out = {"stem": (x := relu(net.conv_norm(x, "conv1", "bn1", 24)))}
    for stage, (blocks, features) in enumerate(zip((4, 8, 4), (240, 480, 960), strict=True), start=1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}.", 2 if block == 0 else 1
            first = 1 if (stage, block) == (1, 0) else 3
            branch = features - x.shape[1] if block == 0 else features
            y = relu(net.conv_norm(x, f"{name}conv1", f"{name}bn1", branch // 4, groups=first))
            y = shuffled(y, first)
            y = relu(net.conv_norm(y, f"{name}conv2", f"{name}bn2", branch // 4, 3, stride, groups=branch // 4))
            y = net.conv_norm(y, f"{name}conv3", f"{name}bn3", branch, groups=3)
            before = np.concatenate([y, average_3x3(x)], axis=1) if block == 0 else y + x
            x = relu(before)
        out |= {f"stage{stage}": x, f"stage{stage}_preact": before}
    out["pooled"] = x.mean((2, 3))
    return out | {"logits": net.linear(out["pooled"], "linear", 100)}


def shufflenet_v2_reference(net, x):
    out = {"stem": (x := relu(net.conv_norm(x, "conv1", "bn1", 24)))}
    for stage, (blocks, features) in enumerate(zip((4, 8, 4), (116, 232, 464), strict=True), start=1):
        half, inputs, name = features // 2, x.shape[1], f"layer{stage}.0."
        left = net.conv_norm(x, f"{name}conv1", f"{name}bn1", inputs, 3, 2, groups=inputs)
        left = relu(net.conv_norm(left, f"{name}conv2", f"{name}bn2", half))
        right = relu(net.conv_norm(x, f"{name}conv3", f"{name}bn3", half))
        right = net.conv_norm(right, f"{name}conv4", f"{name}bn4", half, 3, 2, groups=half)
        right = relu(net.conv_norm(right, f"{name}conv5", f"{name}bn5", half))
        x = shuffled(np.concatenate([left, right], axis=1), 2)
        for block in range(1, blocks):
            name, kept = f"layer{stage}.{block}.", x[:, :half]
            y = relu(net.conv_norm(x[:, half:], f"{name}conv1", f"{name}bn1", half))
            y = net.conv_norm(y, f"{name}conv2", f"{name}bn2", half, 3, groups=half)
            y = net.conv_norm(y, f"{name}conv3", f"{name}bn3", half)
            before = np.concatenate([kept, y], axis=1)
            x = shuffled(relu(before), 2)
        out |= {f"stage{stage}": x, f"stage{stage}_preact": before}
    x = relu(net.conv_norm(x, "conv2", "bn2", 1024))
    out["pooled"] = x.mean((2, 3))
    return out | {"logits": net.linear(out["pooled"], "linear", 100)}


CASES = {
    "resnet50": (_resnet50, _resnet50.ResNet50, _torch_light.torch_resnet50, resnet50_reference),
    "mobilenet_v2": (
        _mobilenet_v2,
        _mobilenet_v2.MobileNetV2,
        _torch_light.torch_mobilenet_v2,
        mobilenet_v2_reference,
    ),
    "shufflenet_v1": (
        _shufflenet_v1,
        _shufflenet_v1.ShuffleNetV1,
        _torch_light.torch_shufflenet_v1,
        shufflenet_v1_reference,
    ),
    "shufflenet_v2": (
        _shufflenet_v2,
        _shufflenet_v2.ShuffleNetV2,
        _torch_light.torch_shufflenet_v2,
        shufflenet_v2_reference,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_logits_and_taps_equal_the_reference(name):
    module, build, names, reference = CASES[name]
    image = np.random.default_rng(0).normal(size=(2, 3, 32, 32))
    net = Net(seed=1)
    wanted = reference(net, image)
    model = adapters.linen(build(), taps=module.taps(build()))
    batch = {"image": jnp.asarray(image.transpose(0, 2, 3, 1), jnp.float32)}
    template = jax.eval_shape(model.init, jax.random.key(0), batch)
    variables = weights.fit_torch_to(template, net.state, names=names(), ignore=weights.NUM_BATCHES_TRACKED)
    found = jax.jit(lambda v, b: model.apply(v, b, key=None, train=False)[0])(variables, batch)
    assert found.keys() == wanted.keys()
    for tap, value in wanted.items():
        value = np.moveaxis(value, 1, -1)
        np.testing.assert_allclose(found[tap], value, rtol=1e-4, atol=1e-5 * np.abs(value).max(), err_msg=tap)


@pytest.mark.parametrize("name", CASES)
def test_the_name_map_covers_the_modules_of_the_model(name):
    _, build, names, _ = CASES[name]
    template = jax.eval_shape(build().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    modules = {path.partition("/")[2].rpartition("/")[0] for path in weights.flatten(template)}
    assert modules == set(names().values())


def test_other_names_of_the_shortcut_and_the_head():
    names = _torch_light.torch_resnet50()
    assert (
        names["layer2.0.downsample.1"] == names["layer2.0.shortcut.1"] == "BottleneckStage_1/Bottleneck_0/BatchNorm_3"
    )
    for function in (_torch_light.torch_resnet50, _torch_light.torch_shufflenet_v1, _torch_light.torch_shufflenet_v2):
        assert function()["fc"] == function()["linear"] == "Dense_0"


def test_a_checkpoint_of_another_model_is_an_error():
    net = Net(seed=0)
    shufflenet_v1_reference(net, np.zeros((1, 3, 32, 32)))
    template = jax.eval_shape(_shufflenet_v2.ShuffleNetV2().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(weights.WeightsError, match=r"expected the arrays of the model: \d+ missing, "):
        weights.fit_torch_to(
            template, net.state, names=_torch_light.torch_shufflenet_v2(), ignore=weights.NUM_BATCHES_TRACKED
        )
