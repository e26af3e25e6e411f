"""CIFAR-100 of a few small random images, and a teacher of random weights, for the tests of the kit."""

import functools
import pathlib

import jax
import numpy as np

from experiments.cifar100 import problem
from experiments.kit import methods
from jaxkd import data, weights

TRAIN, TEST, SIZE = 16, 24, 8
TEACHER, STUDENT = "resnet14", "resnet8"
PAIR = f"{TEACHER}:{STUDENT}"


@functools.cache
def whole(data_dir, split):
    """A `Problem.load` of as many images as two batches, of 8×8 pixels."""
    return images(TRAIN if split == "train" else TEST, seed=len(split))


def images(examples, size=SIZE, seed=0):
    """A set of 100 classes, as many of each as possible."""
    image = np.random.default_rng(seed).integers(0, 256, (examples, size, size, 3), np.uint8)
    return data.from_arrays(image, np.arange(examples) % 100, num_classes=100, name="tiny")


PROBLEM = problem.PROBLEM._replace(load=whole)


def setting(teacher=TEACHER, student=STUDENT, steps=240, labels=(0, 0, 1, 1, 2, 2, 3, 3), margin=None):
    """What an objective may depend on."""
    return methods.Setting(teacher, student, steps, np.array(labels), margin or (lambda tap: None))


@functools.cache
def variables(name=TEACHER):
    """Random weights, each BatchNorm with scales and biases of its own."""
    batch = {"image": np.zeros((1, SIZE, SIZE, 3), np.float32)}
    made = jax.jit(PROBLEM.model(name).init)(jax.random.key(7), batch)
    random = np.random.default_rng(7)
    return jax.tree.map(
        lambda x: x if x.ndim > 1 else np.asarray(x + 0.1 * random.normal(size=x.shape), np.float32), made
    )


def save(directory: pathlib.Path, name=TEACHER) -> str:
    """The file of these weights."""
    file = directory / f"{name}.safetensors"
    weights.save_safetensors(file, variables(name))
    return str(file)


def moved(params) -> bool:
    """Whether a gradient has reached every layer: scales begin as ones, and decay alone would keep them equal."""
    scales = [x for path, x in jax.tree_util.tree_leaves_with_path(params) if "'scale'" in jax.tree_util.keystr(path)]
    return len(scales) > 0 and all(float(np.std(x)) > 0 for x in scales)
