"""Tiny images, a teacher with one hidden layer, and an augmentation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from jaxkd import data

CLASSES, EXAMPLES, VIEWS = 7, 23, 3
_DRAWN = np.random.default_rng(0)
SET = data.Dataset(
    {
        "image": _DRAWN.integers(0, 256, (EXAMPLES, 6, 6, 3), np.uint8),
        "label": _DRAWN.integers(0, CLASSES, EXAMPLES).astype(np.int32),
        "index": _DRAWN.permutation(60)[:EXAMPLES].astype(np.int32),  # a subset of a larger set
    },
    CLASSES,
    "tiny",
)


def augmentation(seed=0, mean=0.5):
    crop = functools.partial(data.random_crop_flip, seed=seed, padding=1)
    return data.compose(crop, functools.partial(data.normalize, mean=(mean,) * 3, std=(0.25,) * 3))


AUGMENT = augmentation()


def _init(key, image):
    first, second = jax.random.split(key)
    return {"in": jax.random.normal(first, (108, 16)) / 10, "out": jax.random.normal(second, (16, CLASSES))}


def forward(params, image, activation=jnp.tanh):
    hidden = activation(image.reshape(len(image), 108) @ params["in"])
    return {"logits": 3 * hidden @ params["out"], "hidden": hidden, "map": hidden.reshape(-1, 2, 2, 4)}


MODEL = jaxkd.adapters.plain(_init, forward)
VARIABLES = MODEL.init(jax.random.key(0), {"image": jnp.zeros((1, 6, 6, 3))})
FLOAT32 = {"logits": jaxkd.cache.codecs.full("float32")}


def write(directory, source=SET, **changed):
    """Writes the toy's cache, with some settings changed."""
    settings = {
        "model": MODEL,
        "variables": VARIABLES,
        "transform": AUGMENT,
        "views": VIEWS,
        "codecs": FLOAT32,
        "batch_size": 4,
        "examples_per_shard": 8,
        "progress": False,
    } | changed
    return jaxkd.cache.write_cache(directory, settings.pop("model"), settings.pop("variables"), source, **settings)


def files(directory):
    """Returns the bytes of every array of a cache."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in sorted(directory.rglob("*.npy"))}
