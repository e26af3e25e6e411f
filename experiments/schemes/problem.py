"""The problem of a run: the digits, few of them labeled, or a part of CIFAR-100; and networks for it."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import optax
from jaxtyping import Array, Float

import jaxkd
from experiments.kit import command, inputs, recipe
from experiments.kit.inputs import patches
from experiments.kit.recipe import Protocol, Transform
from experiments.schemes.config import Config
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
        return jaxkd.adapters.linen(self.module(size), taps=self.taps(size), **options)


# The networks of the digits: one form in several sizes, with BatchNorm.

WIDTHS = {"huge": (48, 96, 96), "wide": (24, 48, 48), "teacher": (12, 24, 24)}
WIDTHS |= {"large": (8, 16, 16), "middle": (6, 12, 12), "student": (4, 8, 8)}  # channels of the three stages, by size

TAPS = {"stage1": "Stage_0", "stage2": "Stage_1", "stage3": "Stage_2", "pooled": "Flat_0"}
"""The submodules that schemes tap."""


class Convolution(nn.Module):
    """A 3 × 3 convolution without a bias, quick where ``vmap`` maps over seeds."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w c"]:
        dense = nn.Dense(self.channels, use_bias=False, kernel_init=nn.initializers.he_normal())
        return dense(patches(x, self.stride))


class Stage(nn.Module):
    """A convolution, BatchNorm and a ReLU."""

    channels: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"], train: bool) -> Float[Array, "batch h w c"]:
        x = Convolution(self.channels, self.stride)(x)
        return nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))


class Flat(nn.Module):
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch features"]:
        return x.reshape(x.shape[0], -1)


class Net(nn.Module):
    """Three stages, with maps of 4 × 4, 4 × 4 and 2 × 2, and a linear classifier."""

    widths: tuple[int, int, int]
    num_classes: int = 10

    @nn.compact
    def __call__(self, x: Float[Array, "batch 8 8 1"], train: bool = False) -> Float[Array, "batch classes"]:
        for channels, stride in zip(self.widths, (2, 1, 2), strict=True):
            x = Stage(channels, stride)(x, train)
        return nn.Dense(self.num_classes)(Flat()(x))


class Maker(nn.Module):
    """A generator of dense layers, which are quick where seeds are mapped over.

    Its last layer is a BatchNorm without scale and bias, as in `jaxkd.models.Generator`.
    """

    size: tuple[int, int, int]
    features: int = 128

    @nn.compact
    def __call__(
        self, noise: Float[Array, "batch size"], train: bool = False
    ) -> dict[str, Float[Array, "batch h w c"]]:
        x = noise
        for _ in range(2):
            x = nn.Dense(self.features, use_bias=False)(x)
            x = nn.leaky_relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x), 0.2)
        height, width, channels = self.size
        x = nn.Dense(height * width * channels)(x).reshape(-1, height, width, channels)
        plain = nn.BatchNorm(use_running_average=not train, momentum=0.9, use_scale=False, use_bias=False)
        return {"image": plain(x)}


def _recurrent(features: int, classes: int, **options: Any) -> Model:
    taps = {"hidden": "RNN_0", "pooled": "LastState_0"}
    return jaxkd.adapters.linen(models.LSTM((features,), classes), taps=taps, **options)


def of(config: Config) -> Problem:
    return digits(config) if config.data == "digits" else cifar100(config)


def digits(config: Config) -> Problem:
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
