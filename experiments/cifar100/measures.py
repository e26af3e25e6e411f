"""What is measured of a trained model: pure functions of its logits and features, in float64."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import statistics
from jaxkd.metrics import linear_cka

BINS = 15
CKA_EXAMPLES = 1000
_NAMES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster
man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck
pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger
tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CLASS_NAMES = tuple(_NAMES.split())  # in the order of the labels


def describe(
    logits: np.ndarray,
    labels: np.ndarray,
    teacher_logits: np.ndarray | None = None,
    features: Mapping[str, np.ndarray] | None = None,
    teacher_features: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """What a cell keeps of the test set, as JSON can hold it.

    Args:
      logits: ``[examples, classes]``.
      labels: ``[examples]``.
      teacher_logits: those of the teacher, on the same examples; left out for a teacher.
      features: of some examples, `subset` for instance, by stage: ``[some, ...]``.
      teacher_features: those of the teacher, of the same examples; stages of both are compared.

    Returns:
      ``accuracy``, ``nll`` in nats, ``calibration_error``, ``per_class``, ``reliability``, with a teacher ``agreement``
      and ``kl_to_teacher``, and with features ``cka``.

    Raises:
      ValueError: shapes do not fit, a label is no class, or the logits are not finite.

    >>> found = describe(np.array([[2.0, 0.0], [0.0, 0.0]]), np.array([0, 1]), np.array([[1.0, 0.0], [0.0, 1.0]]))
    >>> found["accuracy"], found["agreement"], found["per_class"]
    (0.5, 0.5, [1.0, 0.0])
    """
    logits, labels = _checked("logits", logits, labels)
    logarithms = log_softmax(logits)
    probabilities = np.exp(logarithms)
    chosen = logits.argmax(-1)
    bins = statistics.reliability(probabilities, labels, BINS)
    found: dict[str, Any] = {
        "accuracy": float(np.mean(chosen == labels)),
        "nll": float(-np.mean(np.take_along_axis(logarithms, labels[:, None], axis=-1))),
        "calibration_error": statistics.calibration_error(probabilities, labels, BINS),
        "per_class": per_class(chosen, labels, logits.shape[-1]),
        "reliability": {name: values.tolist() for name, values in bins.items()},
    }
    if teacher_logits is not None:
        taught, _ = _checked("teacher_logits", teacher_logits, labels)
        if taught.shape != logits.shape:
            raise ValueError(
                f"teacher_logits: expected {list(logits.shape)}, the shape of the student's, got {list(taught.shape)}."
            )
        found["agreement"] = float(np.mean(chosen == taught.argmax(-1)))
        found["kl_to_teacher"] = kl(taught, logits)
    if features is not None and teacher_features is not None:
        found["cka"] = cka(features, teacher_features)
    return found


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """The logarithms of the probabilities, finite for logits of any finite size.

    >>> log_softmax(np.array([1e4, -1e4]))
    array([     0., -20000.])
    """
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def kl(teacher: np.ndarray, student: np.ndarray) -> float:
    """``KL(teacher ‖ student)`` in nats at temperature 1, the mean over the examples.

    Args:
      teacher: logits ``[examples, classes]``.
      student: logits ``[examples, classes]``.

    >>> round(kl(np.array([[0.0, 0.0]]), np.array([[np.log(3.0), 0.0]])), 4)  # log(4 / 3) / 2
    0.1438
    """
    p, q = log_softmax(teacher.astype(np.float64)), log_softmax(student.astype(np.float64))
    return max(float(np.mean(np.sum(np.exp(p) * (p - q), axis=-1))), 0.0)  # rounding alone makes it negative


def per_class(chosen: np.ndarray, labels: np.ndarray, classes: int) -> list[float | None]:
    """The share of each class's examples that is given that class; None for a class without examples.

    >>> per_class(np.array([0, 1, 1]), np.array([0, 0, 1]), classes=3)
    [0.5, 1.0, None]
    """
    count = np.bincount(labels, minlength=classes)
    right = np.bincount(labels[chosen == labels], minlength=classes)
    return [float(r / n) if n else None for r, n in zip(right, count, strict=True)]


def subset(examples: int, count: int = CKA_EXAMPLES) -> np.ndarray:
    """Which examples features are compared on: evenly spread, and the same ones every time.

    >>> subset(10, 4)
    array([0, 2, 5, 7])
    """
    count = min(count, examples)
    return np.arange(count) * examples // count


def cka(features: Mapping[str, np.ndarray], teacher_features: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Linear CKA between a student's stages and the teacher's stages of the same names.

    Between few examples of wide features CKA is too high, so that only values from equally many examples compare.

    Args:
      features: ``[examples, ...]`` by stage.
      teacher_features: ``[examples, ...]`` by stage, of the same examples.

    Raises:
      ValueError: the numbers of examples differ, or a feature is not finite.

    >>> {stage: round(value, 3) for stage, value in cka({"stage1": np.eye(4)}, {"stage1": 2 * np.eye(4)}).items()}
    {'stage1': 1.0}
    """
    found = {}
    for stage in (name for name in features if name in teacher_features):
        pair = [np.asarray(one[stage]) for one in (features, teacher_features)]
        for whose, one in zip(("student", "teacher"), pair, strict=True):
            if not np.isfinite(one).all():
                raise ValueError(f"{stage} of the {whose}: expected finite features, got NaN or infinity among them.")
        found[stage] = float(linear_cka(*map(jnp.asarray, pair)))
    return found


def _checked(name: str, logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise ValueError(
            f"{name}: expected [examples, classes] with a label for each example, got {list(logits.shape)} with labels "
            f"{list(labels.shape)}."
        )
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ValueError(f"labels: expected 0 to {logits.shape[1] - 1}, got {labels.min()} to {labels.max()}.")
    if not np.isfinite(logits).all():
        wrong = int((~np.isfinite(logits).all(axis=-1)).sum())
        raise ValueError(
            f"{name}: expected finite numbers, got NaN or infinity for {wrong} of {len(logits)} examples. The training "
            "has diverged; its log says when."
        )
    return logits, labels
