"""The data and the trainings: teachers see all labels, students few of them.

Every method sees the same batches in the same order: half of each is labelled, the other half is drawn from all
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
from experiments.digits.config import LAYERS, Config, Method, objective
from experiments.kit import command, inputs, methods, recipe, training
from jaxkd import adapters, data, teachers
from jaxkd.training import FitResult
from jaxkd.types import Model, Variables

normalize = inputs.normalize_digits


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
    """Returns a network with its taps."""
    return adapters.linen(Net(widths), taps={LAYERS[0]: "Layer_0", LAYERS[1]: "Layer_1"})


def with_labels(dataset: data.Dataset, labelled: bool) -> data.Dataset:
    """Returns a set with the mask ``labelled``, and without its labels if False."""
    count = data.num_examples(dataset)
    label = dataset.arrays["label"] if labelled else np.full(count, -1, np.int32)
    return dataset._replace(arrays={**dataset.arrays, "label": label, "labelled": np.full(count, labelled)})


@functools.lru_cache(maxsize=4)  # all methods share one input, whose program is compiled once
def for_students(config: Config) -> inputs.Seeds:
    """Returns each seed's labelled examples, and all images without labels."""
    train, seeds = data.load("digits", "train"), command.seeds(config, 2)
    images = data.Resident(with_labels(train, False), config.batch, drop_remainder=True)
    few = [with_labels(data.split(train, [config.labels], seed=seed)[0], True) for seed in seeds]
    loaders = [inputs.Joined(data.Resident(one, config.batch, drop_remainder=True), images) for one in few]
    return inputs.Seeds(loaders, seeds)


@functools.lru_cache(maxsize=4)
def held_out(split: str) -> data.Resident:
    """Returns the validation or the test split in its own order."""
    return data.Resident(with_labels(data.load("digits", split), True), batch_size=50, shuffle=False)


def train_teachers(config: Config, directory: pathlib.Path | None) -> FitResult:
    """Trains a teacher for each seed, on all labels."""
    model, ce = network(config.teacher_widths), methods.cross_entropy(where="batch/labelled")
    images = data.Resident(with_labels(data.load("digits", "train"), True), 2 * config.batch, drop_remainder=True)
    loader, own = inputs.Seeds([images], command.seeds(config, 2)), [()] * config.seeds
    length = config.teacher_epochs, config.teacher_learning_rate
    return _run("teacher", lambda _: (model, teachers.none(), ce), own, loader, length, config, directory)


def train_students(method: Method, weights: Variables, config: Config, directory: pathlib.Path | None) -> FitResult:
    """Trains a student for each seed, taught by that seed's teacher."""
    model, large, terms = network(config.student_widths), network(config.teacher_widths), objective(method, config)
    own, loader = [jax.tree.map(lambda x, i=i: x[i], weights) for i in range(config.seeds)], for_students(config)
    length = config.epochs, config.learning_rate
    return _run(method, lambda own: (model, teachers.frozen(large, own), terms), own, loader, length, config, directory)


def _run(
    name: str, parts: Any, own: Any, train: inputs.Seeds, length: tuple[int, float], config: Config, directory: Any
) -> FitResult:
    """Trains ``parts(own) -> (student, teacher, objective)`` of all seeds for so many epochs, at a learning rate."""
    (epochs, rate), epoch = length, train.steps_per_epoch
    optimizer, looks = recipe.adam(rate, epochs * epoch), {"train_transform": normalize, "eval_transform": normalize}
    _, result = training.run_seeds(
        lambda own: jaxkd.distillers.preprocess(jaxkd.distill(*parts(own), optimizer=optimizer), **looks),
        own,
        train,
        {"validation": held_out("validation")},
        steps=epochs * epoch,
        eval_every=config.eval_every * epoch,
        chunk=100,
        checkpoint_every=None if directory is None else config.checkpoint_every * epoch,
        directory=directory,
        config={"run": name, **config.identity()},
        progress=directory is not None,
    )
    return result


def validation(result: FitResult, config: Config) -> tuple[list[int], np.ndarray]:
    """Returns the steps of evaluations, and the accuracy ``[evaluations, seeds]``."""
    histories = [training.of_seed(result.history, i) for i in range(config.seeds)]
    seeds = [[row for row in history if "validation/accuracy" in row] for history in histories]
    accuracy = [[row["validation/accuracy"] for row in rows] for rows in seeds]
    return [int(row["step"]) for row in seeds[0]], np.array(accuracy).T
