"""The vision transformer against its formulas, its published sizes, its taps and its errors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd import adapters, models
from tests.models.language import reference, tiny_models

slow = functools.partial(pytest.param, marks=pytest.mark.slow)

SIZES: dict[str, Any] = {
    "width": 8,
    "layers": 2,
    "heads": 2,
    "image_size": 4,
    "patch_size": 2,
    "channels": 3,
    "mlp_width": 12,
}
TINY: dict[str, Any] = {"width": 192, "layers": 12, "heads": 3, "image_size": 224, "patch_size": 16}
CONFIG = models.ViTConfig(**SIZES, classes=5, distillation=True)


def expected(params, image, config):
    """Returns the normalized tokens [1 or 2 + patches, width] of one image, from equations 1 to 4 of the paper."""
    size = config.patch_size
    corners = [(i, j) for i in range(0, image.shape[0], size) for j in range(0, image.shape[1], size)]
    patches = np.stack([image[i : i + size, j : j + size].reshape(-1) for i, j in corners])
    x = np.concatenate([params["tokens"], reference.linear(params["patch_embed"], patches)]) + params["positions"]
    for number in range(config.layers):
        x = reference.layer(params["layers"][number], x, config.transformer, causal=False)
    return reference.norm(params["norm"], x, config.norm_epsilon)


@pytest.mark.parametrize("distillation", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_outputs_equal_the_formulas(distillation):
    config = models.ViTConfig(**SIZES, classes=5, distillation=distillation)
    model = tiny_models.build(config, models.ViT)
    images = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    found, params = tiny_models.call(model, images), tiny_models.params_of(model)
    tokens = np.stack([expected(params, image, config) for image in images.astype(np.float64)])
    first = 2 if distillation else 1
    wanted = {"class_token": tokens[:, 0], "patches": tokens[:, first:].reshape(2, 2, 2, 8)}
    wanted["logits"] = reference.linear(params["classifier"], tokens[:, 0])
    if distillation:
        own = reference.linear(params["distillation_classifier"], tokens[:, 1])
        wanted |= {"distillation_token": tokens[:, 1], "distillation_logits": own, "class_logits": wanted["logits"]}
        wanted["logits"] = (wanted["logits"] + own) / 2
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("config", "count"),
    [
        # DeiT-Ti, and with its distillation token, as published for ImageNet.
        (models.ViTConfig(**TINY, classes=1000), 5_717_416),
        slow(
            models.vit_config("vit_tiny_patch4_32", 1000, image_size=224, patch_size=16, distillation=True), 5_910_800
        ),
        (models.vit_config("ViT-micro-patch2-8", 10), 114_778),
        slow(models.vit_config("vit_micro_patch4_32", 100), 691_972),
        slow(models.vit_config("vit_tiny_patch4_32", 100), 5_380_132),
        slow(models.vit_config("vit_small_patch4_32", 100), 21_376_996),
    ],
)
def test_parameter_counts(config, count):
    made = nnx.eval_shape(lambda: models.ViT(config, rngs=nnx.Rngs(0)))
    assert sum(x.size for x in jax.tree.leaves(adapters.variables(made).params)) == count


def test_taps_are_the_layers_and_their_attention():
    config = models.ViTConfig(**SIZES, classes=None, tap_attention=True)
    model = adapters.nnx(lambda rngs: models.ViT(config, rngs=rngs), taps=models.layer_taps(config))
    batch = {"image": jnp.ones((2, 4, 4, 3))}
    variables = model.init(jax.random.key(0), batch)
    found = jax.eval_shape(lambda v: model.apply(v, batch, key=None, train=False)[0], variables)
    shapes = {name: x.shape for name, x in found.items()}
    tokens = {name: (2, 5, 8) for name in ("embedding", "hidden", "hidden0", "hidden1")}
    heads = {f"{name}{i}": (2, 5, 2, 4) for name in ("queries", "keys", "values") for i in (0, 1)}
    maps = {f"{name}{i}": (2, 2, 5, 5) for name in ("scores", "probabilities") for i in (0, 1)}
    assert shapes == {"class_token": (2, 8), "patches": (2, 2, 2, 8), **tokens, **heads, **maps}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 3}, r"patch_size: expected a divisor of the image_size 4, got 3"),
        ({"heads": 3}, r"heads: expected a divisor of the width 8, got 3"),
        ({"classes": None}, r"distillation: expected classes="),
        ({"channels": 0}, r"channels: expected at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        models.ViTConfig(**{**SIZES, "classes": 5, "distillation": True, **fields})


def test_names_and_images_that_are_unknown_are_refused():
    with pytest.raises(ValueError, match=r"expected one of \['vit_micro_patch2_8', .*got 'vit_huge'"):
        models.vit_config("vit_huge", 10)
    model = models.ViT(CONFIG, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"expected images \[4, 4, 3\], as its ViTConfig says, got \[1, 8, 8, 3\]"):
        model(jnp.ones((1, 8, 8, 3)))
    with pytest.raises(TypeError, match=r"expected floating point"):
        model(jnp.ones((1, 4, 4, 3), jnp.uint8))
