"""A few random images in place of the digits, and tasks whose networks are not trained."""

import jax
import numpy as np

from experiments.classification import images
from experiments.kit import inputs
from jaxkd import data

COUNT = 40


def digits(monkeypatch):
    """Puts 40 random images a split in the place of the digits."""

    def split(seed):
        image = np.random.default_rng(seed).integers(0, 256, (COUNT, 8, 8, 1)).astype(np.uint8)
        return data.from_arrays(image, np.arange(COUNT) % 10, num_classes=10, name="digits")

    made = images.Images("digits", 10, split(0), split(1), split(2), inputs.normalize_digits)
    monkeypatch.setattr(images, "load", lambda name, config: made)
    # A teacher is as it begins: training one takes compilations, and no test needs a good one.
    monkeypatch.setattr(images.Opened, "trained", lambda self, name, model, *_: model.init(jax.random.key(3), batch()))
    return made


def batch():
    return {"image": np.zeros((1, 8, 8, 1), np.float32)}


def traced(training):
    """Returns the shapes of the state and the metrics after a step."""
    first = next(iter(training.inputs.batches()))
    state = jax.eval_shape(training.kd.init, jax.random.key(0), first)
    return jax.eval_shape(training.kd.step, state, first)


def trained(training):
    """Returns the state after a step, and its metrics."""
    batches = iter(training.inputs.batches())
    state = training.kd.init(jax.random.key(0), next(batches))
    return jax.jit(training.kd.step)(state, next(batches))
