"""CIFAR-100 on the device, and who sees which part of it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from experiments.cifar100.config import Protocol
from jaxkd import data

EVAL_BATCH = 500


@functools.lru_cache(maxsize=4)
def whole(data_dir: Any, split: str) -> data.Dataset:
    """A split, decoded (12 seconds for the training images)."""
    found = data.load("cifar100", split, data_dir)
    arrays = {name: found.arrays[name] for name in ("image", "label", "index")}
    return found._replace(arrays=arrays)


def parts(data_dir: Any, protocol: Protocol, student: bool) -> tuple[data.Dataset, data.Dataset | None]:
    """The images that are trained on, and those that are held out, if any.

    What is held out is the same for teachers and students, so that neither has seen it.
    """
    train, held = whole(data_dir, "train"), None
    if protocol.holdout:
        held, train = data.split(train, [protocol.holdout, data.num_examples(train) - protocol.holdout], seed=0)
    if student and protocol.images and protocol.images < data.num_examples(train):
        train = data.split(train, [protocol.images], seed=1)[0]
    return train, held


def training(dataset: data.Dataset, protocol: Protocol, seed: int) -> data.Resident:
    """Batches to train on, in an order of the seed's own."""
    return data.Resident(dataset, protocol.batch_size, seed)


def evaluation(dataset: data.Dataset, teacher_logits: np.ndarray | None = None) -> data.Resident:
    """A set in its own order, perhaps with what the teacher says of each image as ``teacher_logits``."""
    if teacher_logits is not None:
        dataset = dataset._replace(arrays={**dataset.arrays, "teacher_logits": teacher_logits.astype(np.float32)})
    size = min(EVAL_BATCH, data.num_examples(dataset))
    return data.Resident(dataset, size, shuffle=False)


def evaluations(
    data_dir: Any, held: data.Dataset | None, teacher_logits: np.ndarray | None = None
) -> dict[str, data.Resident]:
    """What a run is evaluated on: the test images, and those that are held out, if any."""
    splits = {"test": evaluation(whole(data_dir, "test"), teacher_logits)}
    return splits if held is None else {"validation": evaluation(held), **splits}
