"""Shared by all sides: networks, initial weights, data, batches and hyperparameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data, models

STUDENT, TEACHER, INPUTS, CLASSES = (64, 64), (512, 512), 64, 10
LEARNING_RATE, MOMENTUM = 0.05, 0.9
TEMPERATURE, KD_WEIGHT = 4.0, 0.9  # the loss: (1 - KD_WEIGHT) CE + KD_WEIGHT T² KL(teacher ‖ student)

#: kernel and bias of each layer, in order
Weights = list[tuple[np.ndarray, np.ndarray]]


class Setting(NamedTuple):
    """The training that all sides run.

    Attributes:
      image: digits in [0, 1], float32 ``[examples, 64]``, repeated to fill all batches.
      label: classes, int32 ``[examples]``.
      batch_size: examples in a batch.
      student: Flax parameters of the student.
      teacher: Flax parameters of the teacher.
      order: rows of the first batches, int ``[batches, batch]``.
      resident: the set on the device, whose first batches are those of ``order``.
    """

    image: np.ndarray
    label: np.ndarray
    batch_size: int
    student: Any
    teacher: Any
    order: np.ndarray
    resident: data.Resident

    @property
    def steps_per_epoch(self) -> int:
        return self.resident.steps_per_epoch

    def batches(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns images and labels of the first batches."""
        return [(self.image[rows], self.label[rows]) for rows in self.order]


class Side(NamedTuple):
    """One library's way of training.

    Attributes:
      losses: returns the losses of the first batches, in order, from the initial weights.
      round: takes some steps and returns arrays to wait for.
      steps: number of these steps.
    """

    losses: Callable[[], list[float]]
    round: Callable[[], Any]
    steps: int


def make(batch_size: int, batches_per_epoch: int, compared: int) -> Setting:
    """Builds a setting from the digits, repeated so that the cost of starting an epoch is small."""
    digits = data.load("digits", "train")
    rows = np.arange(batch_size * batches_per_epoch) % data.num_examples(digits)
    image = (digits.arrays["image"].reshape(-1, INPUTS)[rows] / 255).astype(np.float32)
    label = digits.arrays["label"][rows]
    resident = data.Resident(data.from_arrays(image, label), batch_size)
    order = [np.asarray(resident.gather(resident.arrays, step)["index"]) for step in range(compared)]
    example = jnp.zeros((1, INPUTS))
    return Setting(
        image,
        label,
        batch_size,
        models.MLP(STUDENT, CLASSES).init(jax.random.key(0), example)["params"],
        models.MLP(TEACHER, CLASSES).init(jax.random.key(1), example)["params"],
        np.stack(order),
        resident,
    )


def weights(params: Any) -> Weights:
    """Returns the layers of a `jaxkd.models.MLP`, in order."""
    hidden = [params[name]["Dense_0"] for name in sorted(params) if name.startswith("Hidden")]
    return [(np.asarray(layer["kernel"]), np.asarray(layer["bias"])) for layer in [*hidden, params["Dense_0"]]]
