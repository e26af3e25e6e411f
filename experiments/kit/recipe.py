"""Protocols, problems, and the published recipe for small images.

SGD with momentum 0.9 and weight decay 5e-4, rate 0.05 (0.01 for the networks made of depthwise convolutions), ×0.1
after 62.5, 75 and 87.5 % of training (epochs 150, 180 and 210 of 240).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxkd
from jaxkd import data, models
from jaxkd.types import Batch, Model

Transform = Callable[[Batch], dict[str, Any]]
DECAYS = (0.625, 0.75, 0.875)
LIGHT = ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Settings that two runs must share for their numbers to be comparable."""

    epochs: int  # passes of a student over its images. Decays and warm-ups are shares of them
    teacher_epochs: int  # passes of a teacher, which sees all images that are not held out
    images: int | None = None  # images that a student sees, equally many of each class; None for all
    holdout: int = 0  # training images on which the best epoch is chosen; 0 for the test set, as in the literature
    batch_size: int = 64  # examples in a step
    eval_every: int = 1  # epochs between evaluations
    cached: bool = False  # all seeds see the same views; the teacher's outputs on them, without maps, are computed once
    bf16: bool = False  # whether to compute in bfloat16; parameters, statistics and losses stay float32

    @property
    def name(self) -> str:
        """Name of the folder of students. It differs wherever the numbers do."""
        parts = [f"{self.epochs}-epochs"]
        parts += [f"{self.images}-images"] if self.images else []
        parts += [f"teacher-{self.teacher_epochs}"] if self.teacher_epochs != self.epochs else []
        parts += self._marks
        parts += ["cached"] if self.cached else []
        parts += [f"every-{self.eval_every}"] if self.eval_every != 1 else []  # the best epoch is one of fewer
        return "-".join(parts)

    @property
    def teacher_name(self) -> str:
        return "-".join([f"{self.teacher_epochs}-epochs", *self._marks])

    @property
    def _marks(self) -> list[str]:
        marks = [f"holdout-{self.holdout}"] if self.holdout else []
        marks += [f"batch-{self.batch_size}"] if self.batch_size != 64 else []
        return marks + (["bf16"] if self.bf16 else [])

    def settings(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Problem(NamedTuple):
    """A field: its data, its networks and how these are trained."""

    name: str  # name of the data set
    classes: int  # number of classes
    examples: int  # number of training images
    shape: tuple[int, int, int]  # shape of an image
    load: Callable[[Any, str], data.Dataset]  # ``(data_dir, split) -> Dataset`` with ``image``, ``label`` and ``index``
    model: Callable[..., Model]  # ``(network, taps, bf16) -> Model`` for normalized images
    normalize: Transform  # transform of stored images
    augment: Callable[[Any], Transform]  # of training images by seed, which may be traced; normalization included
    optimizer: Callable[[str, int], optax.GradientTransformation]  # by network and steps of a whole training
    initial_optimizer: Callable[[str, bool], optax.GradientTransformation]  # by network and whether the student trains

    def shapes(self, network: str) -> Mapping[str, tuple[int, ...]]:
        """Returns the shape of every tap of a network for one image, without the batch."""
        return _shapes(self.model, self.shape, network)

    def parameters(self, network: str, bf16: bool = False) -> Any:
        image = {"image": jax.ShapeDtypeStruct((2, *self.shape), jnp.float32)}
        return jax.eval_shape(self.model(network, (), bf16).init, jax.random.key(0), image)


@functools.cache
def _shapes(model: Callable[..., Model], shape: tuple[int, ...], network: str) -> dict[str, tuple[int, ...]]:
    tapped = model(network, tuple(models.taps(network)))

    def outputs() -> Any:
        zeros = {"image": jnp.zeros((1, *shape))}
        return tapped.apply(tapped.init(jax.random.key(0), zeros), zeros, key=None, train=False)[0]

    return {tap: found.shape[1:] for tap, found in jax.eval_shape(outputs).items()}


def zoo(classes: int) -> Callable[..., Model]:
    """Returns a `Problem.model` that makes networks of `jaxkd.models`."""

    def model(network: str, taps: tuple[str, ...] = (), bf16: bool = False) -> Model:
        made = models.create(network, classes, dtype=jnp.bfloat16 if bf16 else None)
        paths = models.taps(network)
        return jaxkd.adapters.linen(made, taps={tap: paths[tap] for tap in taps})

    return model


def learning_rate(network: str) -> float:
    return 0.01 if network in LIGHT else 0.05


def sgd(rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(rate, momentum=0.9))


def optimizer(network: str, steps: int) -> optax.GradientTransformation:
    decays = {int(steps * share): 0.1 for share in DECAYS}
    return sgd(optax.piecewise_constant_schedule(learning_rate(network), decays))


def initial_optimizer(network: str, train_student: bool) -> optax.GradientTransformation:
    """Returns the optimizer of an initialization stage.

    The reference trains FT's paraphraser at 0.01 for residual students, and all else at the student's own rate.
    """
    slow = not train_student and network.startswith(("resnet", "wrn"))
    return sgd(0.01 if slow else learning_rate(network))


def adam(rate: float, steps: int) -> optax.GradientTransformation:
    """Returns Adam with a rate that falls to 0 along a cosine."""
    return optax.adam(optax.cosine_decay_schedule(rate, steps))
