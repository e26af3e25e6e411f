"""Function matching: which images teacher and student see, and for how long."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jaxkd
from experiments.classification import images
from experiments.kit.recipe import Transform, adam
from experiments.kit.tasks.task import Method, Task, Training
from jaxkd import data, losses, teachers, wrappers
from jaxkd.types import Objective, TrainState


class Sizes(NamedTuple):
    """Networks and trainings of a set of images."""

    teacher: str
    student: str
    shown: int | None  # images that students see; None for all
    batch: int
    teacher_steps: int
    steps: int
    rate: float = 2e-3


SIZES = {
    "digits": Sizes("resnet14", "resnet8", 50, 32, 1000, 600),
    "cifar100": Sizes("resnet56", "resnet8", 5000, 64, 50_000, 10_000),
}
LONG = 4  # times the steps

KL = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=1.0)
MIXED_CE = jaxkd.term(losses.soft_cross_entropy, "student/logits", "batch/soft_label")
BOTH = jaxkd.combine(
    ce=jaxkd.term(losses.soft_cross_entropy, "student/logits", "batch/soft_label", weight=0.5),
    kd=jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=1.0, weight=0.5),
)


class Setting(NamedTuple):
    """Images, objective and length of a method."""

    views: str  # ``same``, ``mixed``, ``independent`` or ``fixed``
    objective: Objective
    taught: bool = True  # whether there is a teacher
    long: bool = False  # whether it has `LONG` times the steps


SETTINGS = {
    "student": Setting("same", images.CE, taught=False),
    "student_mixed": Setting("mixed", MIXED_CE, taught=False),
    "fixed": Setting("fixed", KL),
    "independent": Setting("independent", KL),
    "same": Setting("same", KL),
    "mixed": Setting("mixed", KL),
    "mixed_ce": Setting("mixed", BOTH),
    "student_mixed_long": Setting("mixed", MIXED_CE, taught=False, long=True),
    "same_long": Setting("same", KL, long=True),
    "mixed_long": Setting("mixed", KL, long=True),
}

METHODS = {
    "student": Method("student alone", "cross-entropy with labels, augmented images"),
    "student_mixed": Method("student alone, mixed images", "Zhang et al. (2018): mixup and mixed labels, uniform λ"),
    "fixed": Method("fixed teacher", "the teacher sees the stored image, the student an augmented one; KL, T = 1"),
    "independent": Method("independent views", "each network sees an augmentation of its own"),
    "same": Method("same view", "both networks see the same augmentation"),
    "mixed": Method("function matching", "Beyer et al. (2022): the same augmented and mixed images, KL alone"),
    "mixed_ce": Method("function matching + labels", "half of the loss is the cross-entropy with the mixed labels"),
    "student_mixed_long": Method(f"student alone, mixed images, {LONG}× steps"),
    "same_long": Method(f"same view, {LONG}× steps"),
    "mixed_long": Method(f"function matching, {LONG}× steps", "the patient teacher"),
}


def views_of(kind: str, seed: int, opened: images.Images) -> Transform:
    """Returns a transform of stored images, with ``view``, if the teacher's images are not the student's."""
    moved = data.compose(opened.moved(seed), opened.normalize)
    if kind == "independent":
        return data.two_views(moved)
    if kind == "fixed":
        return lambda batch: {**moved(batch), "view": opened.normalize(batch)["image"]}
    if kind == "mixed":
        return data.compose(moved, functools.partial(data.mixup, seed=seed, classes=opened.classes))
    return moved


class FunctionMatching(images.Taught):
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path, *, name: str = "digits") -> None:
        self._sizes = sizes = SIZES[name]
        super().__init__(name, config, folder, teacher=sizes.teacher, rate=sizes.rate, steps=sizes.teacher_steps)
        self._student = images.convolutional(sizes.student, self.images.classes)

    def training(self, method: str, seed: int, steps: int) -> Training:
        setting, sizes = SETTINGS[method], self._sizes
        steps *= LONG if setting.long else 1
        teacher = teachers.none()
        if setting.taught:
            own = setting.views in ("fixed", "independent")
            model = wrappers.with_inputs(self.teacher, image="view") if own else self.teacher
            teacher = teachers.frozen(model, self.taught)
        views = views_of(setting.views, seed, self.images)
        kd = images.distill(self.images, self._student, teacher, setting.objective, adam(sizes.rate, steps), views)
        train = data.Resident(self.some(sizes.shown), sizes.batch, seed=seed, drop_remainder=True)
        return Training(kd, train, steps, self.splits)

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        return self.measured(self.outputs(self._student, state.student)["logits"], self.taught_logits)


def task(name: str, about: str) -> Task:
    """Returns the task on a set of images."""
    opened = functools.partial(FunctionMatching, name=name)
    return images.task(f"Function matching: {name}", about, opened, METHODS, SIZES[name].steps)


TASKS = {
    "function_matching": task(
        "digits",
        "Teacher: a ResNet-14, trained on all 1,097 images of 8 × 8 pixels, shifted by up to a pixel. Student: a "
        "ResNet-8 that sees 50 of them, with their labels where a method reads labels.",
    ),
    "function_matching_cifar100": task(
        "cifar100",
        "Teacher: a ResNet-56, trained on 45,000 images with crops and mirrors. Student: a ResNet-8 that sees 5,000 "
        "of them, with their labels where a method reads labels.",
    ),
}
