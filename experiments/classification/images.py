"""What the tasks share: two sets of images, their networks, teachers that are trained once."""

import functools
from typing import Any, NamedTuple

import numpy as np

import jaxkd
from experiments.kit import inputs, measures, training
from experiments.kit.recipe import Transform
from jaxkd import data, distillers, losses, metrics, models, teachers
from jaxkd.types import Distiller, Model, Objective, Teacher, Variables

CE = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")


class Images(NamedTuple):
    """A set of images with its splits."""

    name: str  # name of the set
    classes: int  # number of classes
    train: data.Dataset  # the images to train on
    validation: data.Dataset  # held-out training images
    test: data.Dataset  # the test split
    normalize: Transform  # transform of stored images

    def loader(self, split: str) -> data.Resident:
        """Returns a split in its own order, to evaluate on."""
        dataset: data.Dataset = getattr(self, split)
        return data.Resident(dataset, min(inputs.EVAL_BATCH, data.num_examples(dataset)), shuffle=False)

    def moved(self, seed: int) -> Transform:
        """Returns the usual augmentation of the set: shifts of digits, crops and mirrors of CIFAR; not normalized."""
        change = data.shift if self.name == "digits" else data.random_crop_flip
        return functools.partial(change, seed=seed)


def load(name: str, config: Any) -> Images:
    """Returns the digits, or CIFAR-100 from ``--data-dir``, of which 5,000 training images are held out."""
    if name == "digits":
        train, validation, test = (data.load("digits", split) for split in ("train", "validation", "test"))
        return Images(name, 10, train, validation, test, inputs.normalize_digits)
    if config.data_dir is None:
        raise ValueError(f"--data-dir: expected the folder of prepared TFDS sets, with {name}.")
    whole, test = (inputs.cifar100(config.data_dir, split) for split in ("train", "test"))
    validation, train = data.split(whole, [5000, data.num_examples(whole) - 5000], seed=0)
    return Images(name, 100, train, validation, test, inputs.normalize_cifar100)


def network(name: str, classes: int, *taps: str) -> Model:
    """Returns a convolutional network of the zoo, with some of its taps."""
    paths = models.taps(name)
    return jaxkd.adapters.linen(models.create(name, classes), taps={tap: paths[tap] for tap in taps})


def distill(
    images: Images,
    student: Model,
    teacher: Teacher,
    objective: Objective,
    optimizer: Any,
    views: Transform,
) -> Distiller:
    """Returns a distiller of stored images whose evaluations run the student alone."""
    kd = jaxkd.distill(student, teacher, objective, optimizer=optimizer, metrics=lambda context: {})
    kd = training.measured(kd, student, metrics=metrics.classification)
    return distillers.preprocess(kd, train_transform=views, eval_transform=images.normalize)


def alone(images: Images, model: Model, optimizer: Any, seed: int = 0) -> Distiller:
    """Returns a distiller that trains a network on labels, with the usual augmentation."""
    views = data.compose(images.moved(seed), images.normalize)
    return distill(images, model, teachers.none(), CE, optimizer, views)


def logits(images: Images, model: Model, variables: Variables) -> np.ndarray:
    """Returns a network's logits of the test images."""
    return training.outputs_of(model, variables, images.test, ("logits",), images.normalize)["logits"]


def measure(images: Images, found: np.ndarray, taught: np.ndarray | None = None) -> dict[str, float]:
    """Returns the measures of logits of the test images, beside those of a teacher if there is one."""
    described = measures.describe(found, images.test.arrays["label"], taught)
    named = ("accuracy", "agreement", "calibration_error", "nll", "kl_to_teacher")
    return {name: described[name] for name in named if name in described}
