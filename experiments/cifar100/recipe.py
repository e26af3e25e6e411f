"""The published recipe: one place for what all teachers and students share.

SGD with momentum 0.9 and weight decay 5e-4, rate 0.05 (0.01 for the networks made of depthwise convolutions), ×0.1
after 62.5, 75 and 87.5 % of training (epochs 150, 180 and 210 of 240), batches of 64, random crops of 32 with a padding
of 4, and flips.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxkd
from jaxkd import data, models
from jaxkd.data._transforms import Transform

CLASSES = 100
DECAYS = (0.625, 0.75, 0.875)
LIGHT = ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")

normalize = functools.partial(data.normalize, mean=data.CIFAR100_MEAN, std=data.CIFAR100_STD)


def model(name: str, taps: tuple[str, ...] = (), bf16: bool = False) -> jaxkd.Model:
    """A network of the zoo with some of its points tapped, for normalized images."""
    network = models.create(name, CLASSES, dtype=jnp.bfloat16 if bf16 else None)
    paths = models.taps(name)
    return jaxkd.adapters.linen(network, taps={tap: paths[tap] for tap in taps})


@functools.cache
def shapes(name: str) -> Mapping[str, tuple[int, ...]]:
    """The shape of every point of a network for one image, without the batch.

    >>> shapes("resnet8x4")["stage2"]
    (16, 16, 128)
    """
    tapped = model(name, tuple(models.taps(name)))
    batch = {"image": jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)}

    def outputs() -> Any:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
        return tapped.apply(tapped.init(jax.random.key(0), zeros), zeros, key=None, train=False)[0]

    return {tap: found.shape[1:] for tap, found in jax.eval_shape(outputs).items()}


def learning_rate(name: str) -> float:
    """The rate that a network begins with."""
    return 0.01 if name in LIGHT else 0.05


def sgd(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    """The optimizer, at a rate."""
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9))


def optimizer(name: str, steps: int) -> optax.GradientTransformation:
    """The optimizer of a whole training."""
    decays = {int(steps * share): 0.1 for share in DECAYS}
    return sgd(optax.piecewise_constant_schedule(learning_rate(name), decays))


def augmentation(seed: int) -> Transform:
    """What a training image goes through, on the device and replayable."""
    return data.compose(functools.partial(data.random_crop_flip, seed=seed), normalize)
