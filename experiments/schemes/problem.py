"""What is learned: the digits, few of them labelled, or a part of CIFAR-100; the same schemes run on either."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import optax

import jaxkd
from experiments.cifar100 import inputs as cifar100
from experiments.cifar100 import recipe
from experiments.cifar100.config import Protocol
from experiments.digits import setting as digits_setting
from experiments.schemes.config import Config
from experiments.schemes.networks import TAPS, WIDTHS, Net
from jaxkd import data, models
from jaxkd.data._transforms import Transform
from jaxkd.models import LSTM
from jaxkd.models import taps as lstm_taps

SIZES = ("huge", "wide", "teacher", "large", "middle", "student")


class Problem(NamedTuple):
    """A data set with networks for it.

    Attributes:
      name: ``"digits"`` or ``"cifar100"``.
      classes: how many.
      shape: of an image.
      students: what the students of each seed learn from.
      teachers: what teachers learn from.
      validation: to look at during training.
      test: to be measured on at the end.
      module: a network by its size, one of `SIZES`; ``"half"``, a teacher of half of the classes; ``"left"``, one of
        the left half of images.
      taps: of a module.
      lstm: a recurrent network, of the size of a teacher or a student, which reads an image row by row.
      augment: what a training image goes through, before `normalize`.
      normalize: of images as they are stored.
      optimizer: for so many steps.
      mapped: whether the seeds are trained in one program.
    """

    name: str
    classes: int
    shape: tuple[int, int, int]
    students: list[data.Dataset]
    teachers: data.Dataset
    validation: data.Dataset
    test: data.Dataset
    module: Callable[[str], nn.Module]
    taps: Callable[[str], dict[str, str]]
    lstm: Callable[..., jaxkd.Model]
    augment: Transform
    normalize: Transform
    optimizer: Callable[[int], optax.GradientTransformation]
    mapped: bool

    def network(self, size: str, **options: Any) -> jaxkd.Model:
        """A network as a model with its taps: ``stage1``, ``stage2``, ``stage3``, ``pooled``."""
        return jaxkd.adapters.linen(self.module(size), taps=self.taps(size), **options)


def _recurrent(features: int, classes: int, **options: Any) -> jaxkd.Model:
    network = LSTM((features,), classes)
    return jaxkd.adapters.linen(network, taps=lstm_taps(network), **options)


def of(config: Config) -> Problem:
    """The problem that a configuration names."""
    return digits(config) if config.data_dir is None else cifar(config)


def numbers(config: Config) -> list[int]:
    """The numbers of the seeds."""
    return list(range(config.first_seed, config.first_seed + config.seeds))


def digits(config: Config) -> Problem:
    """Scikit-learn's handwritten digits: a student sees few of the 1097 training images, its teacher all."""
    train = data.load("digits", "train")
    return Problem(
        name="digits",
        classes=10,
        shape=(8, 8, 1),
        students=[data.split(train, [config.images], seed=seed)[0] for seed in numbers(config)],
        teachers=train,
        validation=data.load("digits", "validation"),
        test=data.load("digits", "test"),
        module=lambda size: Net(WIDTHS["teacher" if size in ("half", "left") else size], 5 if size == "half" else 10),
        taps=lambda size: TAPS,
        lstm=lambda size, **options: _recurrent({"teacher": 64, "student": 16}[size], 10, **options),
        augment=functools.partial(data.shift, seed=0),
        normalize=digits_setting.normalize,
        optimizer=lambda steps: optax.adam(optax.cosine_decay_schedule(1e-2, steps)),
        mapped=True,
    )


ZOO = {
    "huge": "resnet56",
    "wide": "resnet32",
    "teacher": "resnet20",
    "large": "resnet20",
    "middle": "resnet14",
    "student": "resnet8",
    "half": "resnet20",
    "left": "resnet20",
}


def cifar(config: Config) -> Problem:
    """CIFAR-100: a student sees some of the images, its teacher all; the recipe is that of `experiments.cifar100`."""
    protocol = Protocol(config.epochs, config.teacher_epochs, images=config.images, holdout=1_000)
    whole, held = cifar100.parts(config.data_dir, protocol, student=False)
    assert held is not None

    def taps(size: str) -> dict[str, str]:
        found = models.taps(ZOO[size])
        return {name: found[name] for name in ("stage1", "stage2", "stage3", "pooled")}

    return Problem(
        name="cifar100",
        classes=recipe.CLASSES,
        shape=(32, 32, 3),
        students=[data.split(whole, [config.images], seed=seed)[0] for seed in numbers(config)],
        teachers=whole,
        validation=held,
        test=cifar100.whole(config.data_dir, "test"),
        module=lambda size: models.create(ZOO[size], recipe.CLASSES // (2 if size == "half" else 1)),
        taps=taps,
        lstm=lambda size, **options: _recurrent({"teacher": 256, "student": 64}[size], recipe.CLASSES, **options),
        augment=functools.partial(data.random_crop_flip, seed=0),
        normalize=recipe.normalize,
        optimizer=lambda steps: recipe.optimizer("resnet8", steps),
        mapped=False,
    )
