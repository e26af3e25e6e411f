"""Attributes of digits, each on or off, of which few are known: binary and multi-label distillation."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import optax
from scipy.special import expit
from sklearn.metrics import average_precision_score, f1_score

import jaxkd
from experiments.classification import images
from experiments.kit import inputs, training
from experiments.kit.tasks import networks
from experiments.kit.tasks.task import Measure, Method, Task, Training
from jaxkd import adapters, data, distillers, losses, metrics, models, teachers
from jaxkd.types import Distiller, Model, Objective, Teacher, TrainState

# The digits that have each attribute. A loop is a closed line; a bar is a horizontal one.
ATTRIBUTES: Mapping[str, tuple[int, ...]] = {
    "even": (0, 2, 4, 6, 8),
    "prime": (2, 3, 5, 7),
    "multiple of three": (0, 3, 6, 9),
    "above four": (5, 6, 7, 8, 9),
    "has a loop": (0, 6, 8, 9),
    "has a bar": (2, 4, 5, 7),
}
TABLE = np.array([[digit in has for has in ATTRIBUTES.values()] for digit in range(10)], np.int32)

LABELS, KNOWN = 60, 0.5  # labeled images, and the share of their attributes that is known
LABELED, OTHERS = 16, 48  # labeled images in a batch, and images without labels
TEACHER_STEPS = 1500

BCE = jaxkd.term(losses.binary_cross_entropy, "student/logits", "batch/label", where="batch/known")
LOGITS = "student/logits", "teacher/logits"


def _kl(where: str | None, temperature: float = 4.0) -> Objective:
    return jaxkd.term(losses.binary_kl, *LOGITS, temperature=temperature, where=where)


OBJECTIVES: Mapping[str, Objective] = {
    "student": BCE,
    "kd_known": jaxkd.combine(bce=BCE, kd=_kl("batch/known")),
    "kd_labeled": jaxkd.combine(bce=BCE, kd=_kl("batch/labeled")),
    "kd": jaxkd.combine(bce=BCE, kd=_kl(None)),
    "kd_sharp": jaxkd.combine(bce=BCE, kd=_kl(None, 1.0)),
    "mse": jaxkd.combine(bce=BCE, mse=jaxkd.term(losses.logit_mse, *LOGITS)),
}
METHODS = {
    "student": Method("student alone", f"binary cross-entropy on {LABELS} images, half of their attributes known"),
    "kd_known": Method("binary KD, known attributes", "T = 4, on the attributes that have a label alone"),
    "kd_labeled": Method("binary KD, labeled images", "T = 4, on all attributes of the labeled images"),
    "kd": Method("binary KD, all images", "T = 4, on all attributes of all images"),
    "kd_sharp": Method("binary KD, T = 1", "on all attributes of all images"),
    "mse": Method("logits (MSE)", "Ba & Caruana (2014), on all images"),
}


def network(*features: int) -> Model:
    """Returns a perceptron with a logit for each attribute."""
    return adapters.linen(models.MLP(features=features, num_classes=len(ATTRIBUTES)))


class Attributes(images.Opened):
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        super().__init__("digits", config, folder)
        self._student, self._large = network(24), network(256, 256)
        steps = networks.before(TEACHER_STEPS, config)
        kd = self._distill(self._large, teachers.none(), BCE, steps, 0)
        whole = data.Resident(self._set("train"), LABELED + OTHERS, drop_remainder=True)
        self._taught = networks.trained_once(folder / "teacher.safetensors", kd, whole, self.splits, steps=steps)

    def _set(self, split: str) -> dict[str, np.ndarray]:
        arrays = getattr(self.images, split).arrays
        label = TABLE[arrays["label"]]
        return {"image": arrays["image"], "label": label, "known": np.ones(label.shape, bool)}

    @functools.cached_property
    def splits(self) -> Mapping[str, data.Resident]:
        return {"validation": data.Resident(self._set("validation"), 20, shuffle=False)}

    def _distill(self, student: Model, teacher: Teacher, objective: Objective, steps: int, seed: int) -> Distiller:
        optimizer = optax.adamw(optax.cosine_decay_schedule(3e-3, max(steps, 1)), weight_decay=0.01)
        kd = jaxkd.distill(student, teacher, objective, optimizer=optimizer, metrics=lambda context: {})
        kd = training.measured(kd, student, metrics=metrics.multilabel)
        normalize = self.images.normalize
        views = data.compose(self.images.moved(seed), normalize)
        return distillers.preprocess(kd, train_transform=views, eval_transform=normalize)

    def training(self, method: str, seed: int, steps: int) -> Training:
        whole, random = self._set("train"), np.random.default_rng(seed)
        few = random.permutation(len(whole["image"]))[:LABELS]
        known = random.random(whole["known"].shape) < KNOWN
        whole |= {"known": known, "label": np.where(known, whole["label"], -1)}
        unknown = {"known": np.zeros_like(known), "label": np.full_like(whole["label"], -1)}
        batches = inputs.few_labels(whole, few, (LABELED, OTHERS), seed, unknown)
        teacher = teachers.none() if method == "student" else teachers.frozen(self._large, self._taught)
        kd = self._distill(self._student, teacher, OBJECTIVES[method], steps, seed)
        return Training(kd, batches, steps, self.splits)

    def _scores(self, model: Model, variables: Any) -> dict[str, float]:
        logits = self.outputs(model, variables)["logits"].astype(np.float64)
        label = self._set("test")["label"]
        return {
            "map": float(average_precision_score(label, expit(logits), average="macro")),
            "f1": float(f1_score(label, logits > 0, average="macro")),
            "accuracy": float(np.mean((logits > 0) == label)),
            "exact": float(np.mean(np.all((logits > 0) == label, axis=1))),
        }

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        return self._scores(self._student, state.student)

    def references(self) -> Mapping[str, Mapping[str, float]]:
        own = {"parameters": networks.parameters(self._taught)}
        return {"teacher": {**self._scores(self._large, self._taught), **own}}


percent = functools.partial(Measure, scale=100, digits=1)
TASK = Task(
    title="Attributes of digits: few known labels",
    about=(
        f"Six attributes of a digit, each on or off: {', '.join(ATTRIBUTES)}. A student is a perceptron with 24 hidden "
        f"units. Each seed has {LABELS} labeled images of its own, with half of their attributes, chosen at random, "
        "known; other entries are ignored. Every method sees the same batches, 16 labeled images and 48 of all 1,097. "
        "Teacher: a perceptron with 2 × 256 hidden units that was trained on all attributes of all images."
    ),
    measures={
        "map": percent("mAP (%)"),
        "f1": percent("macro F1 (%)"),
        "accuracy": percent("attributes right (%)"),
        "exact": percent("images right (%)"),
    },
    methods=METHODS,
    steps=1000,
    evaluations=10,
    open=Attributes,
    curve="validation/macro_f1",
    rises=True,
)
TASKS = {"attributes": TASK}
