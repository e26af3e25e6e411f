"""Features of one or two networks into any architecture: a transformer from a convolutional network, and back."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

import jaxkd
from experiments.classification import images
from experiments.kit import inputs
from experiments.kit.recipe import adam
from experiments.kit.tasks.task import Method, Task, Training
from jaxkd import data, losses, objectives, teachers
from jaxkd.types import Model, Objective, TrainState, Variables


class Sizes(NamedTuple):
    """Networks and trainings of a set of images."""

    teachers: Mapping[str, str]  # by kind
    students: Mapping[str, str]  # by kind
    shown: int  # labeled images that students see
    batch: tuple[int, int]  # labeled images, and images without labels
    teacher_steps: int
    steps: int


SIZES = {
    "digits": Sizes(
        {"cnn": "resnet14", "vit": "vit_micro_patch2_8"},
        {"cnn": "resnet8", "vit": "vit_micro_patch2_8"},
        50,
        (8, 24),
        1000,
        500,
    ),
    "cifar100": Sizes(
        {"cnn": "resnet56", "vit": "vit_tiny_patch4_32"},
        {"cnn": "resnet8", "vit": "vit_micro_patch4_32"},
        5000,
        (32, 96),
        50_000,
        20_000,
    ),
}
RATES = {"cnn": 2e-3, "vit": 1e-3}
MAP = {"cnn": "stage3", "vit": "patches"}
SUMMARY = {"cnn": "pooled", "vit": "class_token"}

CE = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", where="batch/labeled")


class Setting(NamedTuple):
    """Student, teachers and loss of a method."""

    student: str
    teachers: tuple[str, ...] = ()
    hint: bool = False  # whether a linear head and the mean squared error take the place of the AM-RADIO form


SETTINGS = {
    "student": Setting("cnn"),
    "cnn_from_vit_hint": Setting("cnn", ("vit",), hint=True),
    "cnn_from_vit": Setting("cnn", ("vit",)),
    "cnn_from_cnn": Setting("cnn", ("cnn",)),
    "cnn_from_both": Setting("cnn", ("cnn", "vit")),
    "vit": Setting("vit"),
    "vit_from_cnn_hint": Setting("vit", ("cnn",), hint=True),
    "vit_from_cnn": Setting("vit", ("cnn",)),
    "vit_from_both": Setting("vit", ("cnn", "vit")),
}
NAMES = {"cnn": "ResNet", "vit": "ViT"}
NOTES = {
    (): "cross-entropy with the few labels",
    "hint": "a learned linear map of the student's map and summary, mean squared error",
    "one": "a learned head, standardized features; cosine and smooth L1 of maps, cosine of summaries",
    "both": "Ranzinger et al. (2024): a head and statistics for each of two teachers",
}


def _method(setting: Setting) -> Method:
    student, taught = NAMES[setting.student], " and ".join(NAMES[one] for one in setting.teachers)
    kind: Any = () if not taught else "hint" if setting.hint else "both" if len(setting.teachers) > 1 else "one"
    loss = ", squared error" if setting.hint else ""
    baseline = "student" if setting.student == "cnn" else "vit"
    title = f"{student} alone" if not taught else f"{student} ← {taught}{loss}"
    return Method(title, NOTES[kind], student=setting.student, baseline=baseline)


METHODS = {name: _method(setting) for name, setting in SETTINGS.items()}


def objective(setting: Setting) -> Objective:
    """Returns labels where there are, and the features of each teacher."""
    terms: dict[str, Objective] = {}
    for taught in setting.teachers:
        for name, tap in (("map", MAP), ("summary", SUMMARY)):
            paths = f"student/{tap[setting.student]}", f"teacher/{taught}/{tap[taught]}"
            if setting.hint:
                terms[f"{taught}_{name}"] = objectives.hint(*paths)
            elif name == "map":
                terms[f"{taught}_{name}"] = objectives.foundation_features(*paths)
            else:
                terms[f"{taught}_{name}"] = objectives.foundation_features(*paths, cosine=1.0, smooth_l1=0.0)
    return jaxkd.combine(ce=CE, **terms)


class Foundation(images.Opened):
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path, *, name: str = "digits") -> None:
        super().__init__(name, config, folder)
        self._sizes = SIZES[name]
        self._teachers, self._students = (
            {kind: self._network(kind, of[kind]) for kind in MAP} for of in (self._sizes.teachers, self._sizes.students)
        )

    def _network(self, kind: str, name: str) -> Model:
        if kind == "vit":
            return images.transformer(name, self.images.classes)
        return images.convolutional(name, self.images.classes, MAP[kind], SUMMARY[kind])

    @functools.cached_property
    def _taught(self) -> Mapping[str, Variables]:
        steps = self._sizes.teacher_steps
        return {kind: self.trained(kind, model, RATES[kind], steps, 64) for kind, model in self._teachers.items()}

    @functools.cached_property
    def _taught_logits(self) -> Mapping[str, np.ndarray]:
        return {kind: self.outputs(model, self._taught[kind])["logits"] for kind, model in self._teachers.items()}

    def training(self, method: str, seed: int, steps: int) -> Training:
        setting, sizes = SETTINGS[method], self._sizes
        teacher = teachers.none()
        if setting.teachers:
            members = {kind: teachers.frozen(self._teachers[kind], self._taught[kind]) for kind in setting.teachers}
            teacher = teachers.ensemble(members)
        views = data.compose(self.images.moved(seed), self.images.normalize)
        student, optimizer = self._students[setting.student], adam(RATES[setting.student], steps)
        kd = images.distill(self.images, student, teacher, objective(setting), optimizer, views)
        train = self.images.train.arrays
        few = data.split(self.images.train, [sizes.shown], seed=seed)[0].arrays["index"]
        chosen = np.flatnonzero(np.isin(train["index"], few))
        unknown = {"label": np.full_like(train["label"], -1)}
        return Training(kd, inputs.few_labels(train, chosen, sizes.batch, seed, unknown), steps, self.splits)

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        logits = self.outputs(self._students[SETTINGS[method].student], state.student)["logits"]
        found = self.measured(logits)
        taught = self._taught_logits.items()
        return found | {f"agreement_{kind}": float(np.mean(logits.argmax(-1) == x.argmax(-1))) for kind, x in taught}

    def references(self) -> Mapping[str, Mapping[str, float]]:
        return {NAMES[kind]: self.reference(self._taught_logits[kind], self._taught[kind]) for kind in MAP}


def task(name: str, about: str) -> Task:
    """Returns the task on a set of images."""
    opened, title = functools.partial(Foundation, name=name), f"Features of foundation models: {name}"
    measures = {key: images.MEASURES[key] for key in ("accuracy", "calibration_error")}
    return images.task(title, about, opened, METHODS, SIZES[name].steps, measures=measures)


TASKS = {
    "foundation": task(
        "digits",
        "Teachers: a ResNet-14 and a vision transformer with 4 layers and a width of 48, trained on all 1,097 images. "
        "Students: a ResNet-8, and the same transformer. Each batch has 8 of the seed's 50 labeled images, and 24 of "
        "all images without their labels.",
    ),
    "foundation_cifar100": task(
        "cifar100",
        "Teachers: a ResNet-56 and a vision transformer with the layers of DeiT-Ti, trained on 45,000 images. "
        "Students: a ResNet-8, and a transformer with 6 layers and a width of 96. Each batch has 32 of the seed's "
        "5,000 labeled images, and 96 of all images without their labels.",
    ),
}
