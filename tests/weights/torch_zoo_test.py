"""State dicts of PyTorch's CIFAR networks: every name of all, and the logits of some."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters, models, weights

VGG_WIDTHS = (64, 128, 256, 512, 512)
VGG_CONVOLUTIONS = {
    8: (1, 1, 1, 1, 1),
    11: (1, 1, 2, 2, 2),
    13: (2, 2, 2, 2, 2),
    16: (2, 2, 3, 3, 3),
    19: (2, 2, 4, 4, 4),
}


def norm(name, channels):
    """Shapes of the arrays of a BatchNorm2d."""
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (channels,) for leaf in leaves} | {f"{name}.num_batches_tracked": ()}


def wrn_shapes(depth, width, classes=100):
    """Shapes of the arrays of a PyTorch wide ResNet."""
    shapes = {"conv1.weight": (16, 3, 3, 3)}
    channels = 16
    for stage, features in enumerate((16 * width, 32 * width, 64 * width), 1):
        for block in range((depth - 4) // 6):
            name = f"block{stage}.layer.{block}"
            shapes |= norm(f"{name}.bn1", channels) | {f"{name}.conv1.weight": (features, channels, 3, 3)}
            shapes |= norm(f"{name}.bn2", features) | {f"{name}.conv2.weight": (features, features, 3, 3)}
            if channels != features:
                shapes[f"{name}.convShortcut.weight"] = (features, channels, 1, 1)
            channels = features
    return shapes | norm("bn1", channels) | {"fc.weight": (classes, channels), "fc.bias": (classes,)}


def vgg_shapes(depth, classes=100):
    """Shapes of the arrays of a PyTorch VGG with BatchNorm."""
    shapes = {}
    channels = 3
    for stage, (convolutions, features) in enumerate(zip(VGG_CONVOLUTIONS[depth], VGG_WIDTHS, strict=True)):
        for number in range(convolutions):
            name = f"block{stage}.{3 * number}"
            shapes |= {f"{name}.weight": (features, channels, 3, 3), f"{name}.bias": (features,)}
            shapes |= norm(f"block{stage}.{3 * number + 1}", features)
            channels = features
    return shapes | {"classifier.weight": (classes, channels), "classifier.bias": (classes,)}


def resnet_shapes(depth, filters, classes=100):
    """Shapes of the arrays of a PyTorch ResNet of basic blocks."""
    stem, *stages = filters
    shapes = {"conv1.weight": (stem, 3, 3, 3)} | norm("bn1", stem)
    channels = stem
    for stage, features in enumerate(stages, 1):
        for block in range((depth - 2) // 6):
            name = f"layer{stage}.{block}"
            shapes |= {f"{name}.conv1.weight": (features, channels, 3, 3)} | norm(f"{name}.bn1", features)
            shapes |= {f"{name}.conv2.weight": (features, features, 3, 3)} | norm(f"{name}.bn2", features)
            if channels != features or (stage > 1 and block == 0):
                shapes |= {f"{name}.downsample.0.weight": (features, channels, 1, 1)}
                shapes |= norm(f"{name}.downsample.1", features)
            channels = features
    return shapes | {"fc.weight": (classes, channels), "fc.bias": (classes,)}


SHAPES = {
    **{f"resnet{depth}": resnet_shapes(depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": resnet_shapes(depth, (32, 64, 128, 256)) for depth in (8, 32)},
    **{f"wrn_{depth}_{width}": wrn_shapes(depth, width) for depth in (16, 40) for width in (1, 2)},
    **{f"vgg{depth}": vgg_shapes(depth) for depth in VGG_CONVOLUTIONS},
}


def template(name):
    module = models.create(name, num_classes=100)
    return module, jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def fit(name, state_dict):
    return weights.fit_torch_to(
        template(name)[1], state_dict, names=weights.torch_cifar(name), ignore=weights.NUM_BATCHES_TRACKED
    )


@pytest.mark.parametrize("name", SHAPES)
def test_every_array_fills_one_parameter(name):
    """Each array has a distinct value, so that none can be missing or used twice."""
    state_dict = {key: np.full(shape, number, np.float32) for number, (key, shape) in enumerate(SHAPES[name].items())}
    fitted = weights.flatten(fit(name, state_dict))
    used = {key for key in state_dict if not key.endswith("num_batches_tracked")}
    values = sorted(float(leaf.reshape(-1)[0]) for leaf in fitted.values())
    assert values == [float(number) for number, key in enumerate(state_dict) if key in used]


@pytest.mark.parametrize("name", models.names())
def test_the_name_map_covers_the_modules_of_the_model(name):
    modules = {path.partition("/")[2].rpartition("/")[0] for path in weights.flatten(template(name)[1])}
    mapped = set(weights.torch_cifar(name).values())
    assert modules <= mapped
    # A map serves all widths, so it also maps shortcuts that blocks of this width lack.
    assert all("Block_" in path for path in mapped - modules)


# --- logits -----------------------------------------------------------------------------------------------------------


def random_state(shapes):
    """Draws float32 arrays; variances are positive."""
    rng = np.random.default_rng(0)

    ranges = {"running_var": (0.5, 2.0), "weight": (0.5, 1.5), "num_batches_tracked": (3, 4)}

    def value(key, shape):
        if len(shape) > 1:
            return rng.normal(scale=np.sqrt(2 / np.prod(shape[1:])), size=shape)
        return rng.uniform(*ranges.get(key.rpartition(".")[2], (-0.5, 0.5)), size=shape)

    return {key: np.asarray(value(key, shape), np.float32) for key, shape in shapes.items()}


class Torch:
    """PyTorch's layers by their definitions, in float64, with weights from a state dict."""

    def __init__(self, state_dict):
        self.state = {key: np.asarray(value, np.float64) for key, value in state_dict.items()}

    def conv(self, name, x, stride=1):
        kernel = self.state[f"{name}.weight"]
        size, pad = kernel.shape[-1], kernel.shape[-1] // 2
        x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
        windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))[:, :, ::stride, ::stride]
        y = np.tensordot(windows, kernel, axes=((1, 4, 5), (1, 2, 3)))  # [batch, height, width, out]
        return np.moveaxis(y + self.state.get(f"{name}.bias", 0), -1, 1)

    def relu_norm(self, name, x):
        return np.maximum(self.norm(name, x), 0)

    def norm(self, name, x):
        weight, bias, mean, var = (
            self.state[f"{name}.{leaf}"][:, None, None] for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / np.sqrt(var + 1e-5) * weight + bias

    def linear(self, name, x):
        return x @ self.state[f"{name}.weight"].T + self.state[f"{name}.bias"]


def max_pool(x):
    batch, channels, height, width = x.shape
    return x.reshape(batch, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))


def wrn_forward(torch, depth, x):
    """Returns logits, stages, and their values after BatchNorm."""
    raw, normal = {}, {}
    x = torch.conv("conv1", x)
    raw["stem"] = x
    for stage in (1, 2, 3):
        for block in range((depth - 4) // 6):
            name = f"block{stage}.layer.{block}"
            if block == 0:
                normal[f"stage{stage - 1}_preact"] = torch.norm(f"{name}.bn1", x)
            active = torch.relu_norm(f"{name}.bn1", x)
            stride = 2 if stage > 1 and block == 0 else 1
            y = torch.conv(f"{name}.conv1", active, stride)
            y = torch.conv(f"{name}.conv2", torch.relu_norm(f"{name}.bn2", y))
            shortcut = f"{name}.convShortcut"
            x = y + (torch.conv(shortcut, active, stride) if f"{shortcut}.weight" in torch.state else x)
        raw[f"stage{stage}"] = x
    del normal["stage0_preact"]  # the model has no such tap after the stem
    normal["stage3_preact"] = torch.norm("bn1", x)
    pooled = np.maximum(normal["stage3_preact"], 0).mean(axis=(2, 3))
    return raw | normal | {"pooled": pooled, "logits": torch.linear("fc", pooled)}


def vgg_forward(torch, depth, x):
    """Returns logits, stages, and the inputs of their last ReLU."""
    outputs = {}
    for stage, convolutions in enumerate(VGG_CONVOLUTIONS[depth]):
        for number in range(convolutions):
            before = torch.norm(f"block{stage}.{3 * number + 1}", torch.conv(f"block{stage}.{3 * number}", x))
            x = np.maximum(before, 0)
        outputs |= {f"stage{stage}": x, f"stage{stage}_preact": before}
        if stage < 3:
            x = max_pool(x)
    del outputs["stage0_preact"]
    outputs["stem"] = outputs.pop("stage0")
    pooled = x.mean(axis=(2, 3))
    return outputs | {"pooled": pooled, "logits": torch.linear("classifier", pooled)}


@pytest.mark.parametrize(
    "name, forward, depth",
    [
        ("wrn_16_1", wrn_forward, 16),
        pytest.param("wrn_16_2", wrn_forward, 16, marks=pytest.mark.slow),
        ("vgg8", vgg_forward, 8),
        pytest.param("vgg13", vgg_forward, 13, marks=pytest.mark.slow),
    ],
)
def test_logits_and_taps_equal_the_reference(name, forward, depth):
    state_dict = random_state(SHAPES[name])
    image = np.random.default_rng(1).normal(size=(2, 3, 32, 32))
    wanted = forward(Torch(state_dict), depth, image)
    model = adapters.linen(models.create(name, num_classes=100), taps=models.taps(name))
    variables = adapters.variables(fit(name, state_dict))
    batch = {"image": jnp.asarray(np.moveaxis(image, 1, -1), jnp.float32)}
    found, _ = model.apply(variables, batch, key=None, train=False)
    assert found.keys() == wanted.keys()
    for tap, value in wanted.items():
        value = np.moveaxis(value, 1, -1) if value.ndim > 2 else value
        np.testing.assert_allclose(found[tap], value, rtol=1e-4, atol=1e-5 * np.abs(value).max(), err_msg=tap)


# --- errors -----------------------------------------------------------------------------------------------------------


def test_an_extra_block_is_reported():
    state_dict = {key: np.zeros(shape, np.float32) for key, shape in SHAPES["wrn_40_1"].items()}
    with pytest.raises(weights.WeightsError, match=r"unused: 'block1\.layer\.2\.bn1\.weight'"):
        fit("wrn_16_1", state_dict)
    state_dict = {key: np.zeros(shape, np.float32) for key, shape in SHAPES["vgg8"].items()}
    with pytest.raises(weights.WeightsError, match=r"missing: params/VGGStage_2/BatchNorm_1/bias"):
        fit("vgg11", state_dict)


def test_errors_name_what_was_expected():
    with pytest.raises(ValueError, match=r"depth: expected 6 n \+ 4 with n >= 1 .*, got 18"):
        weights.torch_wrn(18)
    with pytest.raises(ValueError, match=r"depth: expected one of 8, 11, 13, 16, 19, got 12"):
        weights.torch_vgg(12)
    with pytest.raises(ValueError, match=r"model 'wrn_16_3': there is no such name \(did you mean 'wrn_16_[12]'\?\)"):
        weights.torch_cifar("wrn_16_3")
