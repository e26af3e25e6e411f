"""The data and the trainings: teachers see all labels, students few of them.

Every method sees the same batches in the same order: half of each is labeled, the other half is drawn from all
training images without their labels.
"""

import functools
import pathlib
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import Array, Float

import jaxkd
from experiments.digits.config import LAYERS, TITLES, Config, objective
from experiments.kit import command, inputs, methods, recipe
from experiments.kit.rows import seeds
from jaxkd import adapters, data, teachers
from jaxkd.training import FitResult
from jaxkd.types import Distiller, Model, Variables

normalize = inputs.normalize_digits
CE = methods.cross_entropy(where="batch/labeled")


class Layer(nn.Module):
    """A 3 × 3 convolution, as a dense layer of patches, and a ReLU."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w c"]:
        x = nn.Dense(self.channels, kernel_init=nn.initializers.he_normal())(inputs.patches(x, self.stride))
        return nn.relu(x)


class Net(nn.Module):
    """8 × 8 pixels to two maps of 4 × 4, flattened for a linear classifier."""

    widths: tuple[int, int]
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Float[Array, "batch 8 8 1"]) -> Float[Array, "batch classes"]:
        x = Layer(self.widths[0], stride=2)(x)
        x = Layer(self.widths[1])(x)
        return nn.Dense(self.num_classes)(x.reshape(x.shape[0], -1))


def network(widths: tuple[int, int]) -> Model:
    return adapters.linen(Net(widths), taps={LAYERS[0]: "Layer_0", LAYERS[1]: "Layer_1"})


def with_labels(dataset: data.Dataset, labeled: bool) -> data.Dataset:
    """Returns a set with the mask ``labeled``, and without its labels if False."""
    count = data.num_examples(dataset)
    label = dataset.arrays["label"] if labeled else np.full(count, -1, np.int32)
    return dataset._replace(arrays={**dataset.arrays, "label": label, "labeled": np.full(count, labeled)})


@functools.lru_cache(maxsize=4)  # all methods share one input, whose program is compiled once
def for_students(config: Config) -> inputs.Seeds:
    """Returns each seed's labeled examples, and all images without labels."""
    train, numbers = data.load("digits", "train"), command.seeds(config, 2)
    images = data.Resident(with_labels(train, False), config.batch, drop_remainder=True)
    few = [with_labels(data.split(train, [config.labels], seed=seed)[0], True) for seed in numbers]
    loaders = [inputs.Joined(data.Resident(one, config.batch, drop_remainder=True), images) for one in few]
    return inputs.Seeds(loaders, numbers)


def for_teachers(config: Config) -> inputs.Seeds:
    """Returns all images with their labels, in each seed's order."""
    images = data.Resident(with_labels(data.load("digits", "train"), True), 2 * config.batch, drop_remainder=True)
    return inputs.Seeds([images], command.seeds(config, 2))


@functools.lru_cache(maxsize=4)
def held_out(split: str) -> data.Resident:
    """Returns the validation or the test split in its own order."""
    return data.Resident(with_labels(data.load("digits", split), True), batch_size=50, shuffle=False)


def train(name: Any, weights: Variables | None, config: Config, directory: pathlib.Path | None) -> FitResult:
    """Trains the ``"teacher"`` of each seed, or, given its weights, the students of a method."""
    large = network(config.teacher_widths)
    if weights is None:
        student, terms, own = large, CE, [()] * config.seeds
        loader, epochs, rate = for_teachers(config), config.teacher_epochs, config.teacher_learning_rate
    else:
        student, terms = network(config.student_widths), objective(name, config)
        own = [jax.tree.map(lambda x, i=i: x[i], weights) for i in range(config.seeds)]
        loader, epochs, rate = for_students(config), config.epochs, config.learning_rate
    epoch = loader.steps_per_epoch
    optimizer, looks = recipe.adam(rate, epochs * epoch), {"train_transform": normalize, "eval_transform": normalize}

    def make(own: Any) -> Distiller:
        teacher = teachers.none() if weights is None else teachers.frozen(large, own)
        return jaxkd.distillers.preprocess(jaxkd.distill(student, teacher, terms, optimizer=optimizer), **looks)

    _, result = seeds.run_seeds(
        make,
        own,
        loader,
        {"validation": held_out("validation")},
        steps=epochs * epoch,
        eval_every=config.eval_every * epoch,
        chunk=100,
        checkpoint_every=None if directory is None else config.checkpoint_every * epoch,
        directory=directory,
        config={"run": name, **config.identity()},
        progress=directory is not None
        and f"{TITLES[name]}, seeds {config.first_seed} to {config.first_seed + config.seeds - 1}",
    )
    return result


def validation(result: FitResult, config: Config) -> tuple[list[int], np.ndarray]:
    """Returns the steps of evaluations, and the accuracy ``[evaluations, seeds]``."""
    curves = [seeds.validation(result.history, i) for i in range(config.seeds)]
    return list(map(int, curves[0]["step"])), np.array([curve["accuracy"] for curve in curves]).T
