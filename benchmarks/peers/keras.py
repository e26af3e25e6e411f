"""Keras's `Distiller` on the JAX backend.

`LogitsDistillation` softens and scales logits only for an instance of `KLDivergence`. With ``loss="kl_divergence"``, it
would treat logits as probabilities, without T².
"""

from __future__ import annotations

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import keras

from benchmarks.peers import setting
from benchmarks.peers.setting import CLASSES, INPUTS, KD_WEIGHT, STUDENT, TEACHER, TEMPERATURE, Setting, Side, Weights


def _network(features: tuple[int, ...], weights: Weights) -> Any:
    hidden = [keras.layers.Dense(size, activation="relu") for size in features]
    network = keras.Sequential([keras.Input((INPUTS,)), *hidden, keras.layers.Dense(CLASSES)])
    network.set_weights([array for layer in weights for array in layer])
    return network


def _distiller(of: Setting, steps_per_execution: int) -> Any:
    distiller = keras.distillation.Distiller(
        teacher=_network(TEACHER, setting.weights(of.teacher)),
        student=_network(STUDENT, setting.weights(of.student)),
        distillation_losses=keras.distillation.LogitsDistillation(TEMPERATURE, loss=keras.losses.KLDivergence()),
        student_loss_weight=1 - KD_WEIGHT,
    )
    distiller.compile(
        optimizer=keras.optimizers.SGD(setting.LEARNING_RATE, momentum=setting.MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=steps_per_execution,
    )
    return distiller


def fit(of: Setting, steps: int, steps_per_execution: int = 1) -> Side:
    """Builds the side of ``distiller.fit`` on NumPy arrays."""
    distiller = _distiller(of, steps_per_execution)
    epochs = max(1, round(steps / of.steps_per_epoch))

    def first() -> list[float]:
        fresh, found = _distiller(of, 1), []
        for image, label in of.batches():
            fresh.reset_metrics()  # metrics are means over all calls since a reset
            found.append(float(fresh.train_on_batch(image, label, return_dict=True)["total_loss"]))
        return found

    def many() -> Any:
        distiller.fit(of.image, of.label, batch_size=of.batch_size, epochs=epochs, verbose=0)
        return [variable.value for variable in distiller.student.trainable_variables]

    return Side(first, many, epochs * of.steps_per_epoch)
