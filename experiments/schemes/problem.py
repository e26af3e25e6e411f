"""The problem of a run: the digits, few of them labelled, or a part of CIFAR-100."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import optax

import jaxkd
from experiments.kit import command, inputs, recipe
from experiments.kit.recipe import Protocol, Transform
from experiments.schemes.config import Config
from experiments.schemes.networks import TAPS, WIDTHS, Net
from jaxkd import data, models
from jaxkd.types import Model

SIZES = ("huge", "wide", "teacher", "large", "middle", "student")


class Problem(NamedTuple):
    """A data set with networks for it."""

    name: str  # ``"digits"`` or ``"cifar100"``
    classes: int  # number of classes
    shape: tuple[int, int, int]  # shape of an image
    students: list[data.Dataset]  # the images that the student of each seed learns from
    teachers: data.Dataset  # the images that teachers learn from
    validation: data.Dataset  # images to evaluate on during training
    test: data.Dataset  # images to measure on at the end
    module: Callable[[str], nn.Module]  # by one of `SIZES`, or teachers of ``"half"`` of the classes, ``"left"`` halves
    taps: Callable[[str], dict[str, str]]  # taps of a network, by its size
    lstm: Callable[..., Model]  # of the size of a teacher or a student, which reads an image row by row
    augment: Transform  # augmentation of a training image, before `normalize`
    normalize: Transform  # normalization of stored images
    optimizer: Callable[[int], optax.GradientTransformation]  # optimizer for so many steps
    mapped: bool  # whether the seeds are trained as one program

    @property
    def look(self) -> Transform:
        """Transform of a training image: augmentation, then normalization."""
        return data.compose(self.augment, self.normalize)

    def network(self, size: str, **options: Any) -> Model:
        """Returns a network tapped at its three stages and at ``pooled``."""
        return jaxkd.adapters.linen(self.module(size), taps=self.taps(size), **options)


def _recurrent(features: int, classes: int, **options: Any) -> Model:
    taps = {"hidden": "RNN_0", "pooled": "LastState_0"}
    return jaxkd.adapters.linen(models.LSTM((features,), classes), taps=taps, **options)


def of(config: Config) -> Problem:
    """Returns the problem that a configuration names."""
    return digits(config) if config.data == "digits" else cifar100(config)


def digits(config: Config) -> Problem:
    """Returns the handwritten digits, of which a student sees few."""
    train = data.load("digits", "train")
    return Problem(
        name="digits",
        classes=10,
        shape=(8, 8, 1),
        students=[data.split(train, [config.images], seed=seed)[0] for seed in command.seeds(config)],
        teachers=train,
        validation=data.load("digits", "validation"),
        test=data.load("digits", "test"),
        module=lambda size: Net(WIDTHS["teacher" if size in ("half", "left") else size], 5 if size == "half" else 10),
        taps=lambda size: TAPS,
        lstm=lambda size, **options: _recurrent({"teacher": 64, "student": 16}[size], 10, **options),
        augment=functools.partial(data.shift, seed=0),
        normalize=inputs.normalize_digits,
        optimizer=lambda steps: recipe.adam(1e-2, steps),
        mapped=True,
    )


ZOO = {"huge": "resnet56", "wide": "resnet32", "middle": "resnet14", "student": "resnet8"}
ZOO |= dict.fromkeys(("teacher", "large", "half", "left"), "resnet20")


def cifar100(config: Config) -> Problem:
    """Returns CIFAR-100 with the published recipe; a student sees some images."""
    protocol = Protocol(config.epochs, config.teacher_epochs, images=config.images, holdout=1_000)
    whole, held = inputs.parts(inputs.cifar100(config.data_dir, "train"), protocol, student=False)
    assert held is not None
    return Problem(
        name="cifar100",
        classes=100,
        shape=(32, 32, 3),
        students=[data.split(whole, [config.images], seed=seed)[0] for seed in command.seeds(config)],
        teachers=whole,
        validation=held,
        test=inputs.cifar100(config.data_dir, "test"),
        module=lambda size: models.create(ZOO[size], 100 // (2 if size == "half" else 1)),
        taps=lambda size: {name: models.taps(ZOO[size])[name] for name in TAPS},
        lstm=lambda size, **options: _recurrent({"teacher": 256, "student": 64}[size], 100, **options),
        augment=functools.partial(data.random_crop_flip, seed=0),
        normalize=inputs.normalize_cifar100,
        optimizer=lambda steps: recipe.optimizer("resnet8", steps),
        mapped=False,
    )
