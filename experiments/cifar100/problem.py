"""CIFAR-100 with the networks of the literature and the published recipe.

Training images are random crops of 32 from 40 pixels, and flipped.
"""

import functools
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

_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""
CLASS_NAMES = tuple(_NAMES.split())  # names of the classes, in the order of the labels
