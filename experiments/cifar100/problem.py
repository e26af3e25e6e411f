"""CIFAR-100 with the networks of the literature and the published recipe.

Training images are random crops of 32 from 40 pixels, and flipped.
"""

import functools
import pathlib
from typing import Any

from experiments.kit import inputs, recipe
from jaxkd import data


def augment(seed: Any) -> recipe.Transform:
    """Returns the augmentation, a function of the seed, the epoch and the example."""
    return data.compose(functools.partial(data.random_crop_flip, seed=seed), inputs.normalize_cifar100)


PROBLEM = recipe.Problem(
    name="cifar100",
    classes=100,
    examples=50_000,
    shape=(32, 32, 3),
    load=inputs.cifar100,
    model=recipe.zoo(100),
    normalize=inputs.normalize_cifar100,
    augment=augment,
    optimizer=recipe.optimizer,
    initial_optimizer=recipe.initial_optimizer,
)

CLASS_NAMES = tuple(pathlib.Path(__file__).with_name("class_names.txt").read_text().split())  # by label
