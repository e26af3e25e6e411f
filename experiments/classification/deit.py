"""The distillation token: a convolutional teacher, and a vision transformer whose second token learns its labels."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.classification import images
from experiments.kit.recipe import adam
from experiments.kit.tasks.task import Measure, Method, Task, Training
from jaxkd import data, losses, teachers, wrappers
from jaxkd.types import Model, Objective, TrainState


class Sizes(NamedTuple):
    """Networks and trainings of a set of images."""

    teacher: str
    student: str
    shown: int | None  # images that students see; None for all
    batch: int
    teacher_steps: int
    steps: int
    rate: float = 1e-3
    teacher_rate: float = 2e-3


SIZES = {
    "digits": Sizes("resnet14", "vit_micro_patch2_8", 300, 32, 1000, 1000),
    "cifar100": Sizes("resnet56", "vit_tiny_patch4_32", None, 128, 50_000, 50_000),
}
SHARE, TEMPERATURE = 0.1, 3.0  # λ and τ of soft labels in the paper


def _objective(student: str, soft: bool) -> Objective:
    """Returns labels for the class token's logits, and the teacher's for those of the student's path."""
    labels = "student/class_logits" if student == "student/distillation_logits" else student
    share = SHARE if soft else 0.5
    if soft:
        kd = jaxkd.term(losses.soft_target_kl, student, "teacher/logits", weight=share, temperature=TEMPERATURE)
    else:
        kd = jaxkd.term(losses.cross_entropy, student, "teacher/label", weight=share)
    return jaxkd.combine(ce=jaxkd.term(losses.cross_entropy, labels, "batch/label", weight=1 - share), kd=kd)


CLASS, TOKEN = "student/logits", "student/distillation_logits"
OBJECTIVES = {
    "student": images.CE,
    "soft": _objective(CLASS, soft=True),
    "hard": _objective(CLASS, soft=False),
    "token_soft": _objective(TOKEN, soft=True),
    "token_hard": _objective(TOKEN, soft=False),
}

METHODS = {
    "student": Method("student alone", "cross-entropy with labels"),
    "soft": Method("soft labels, class token", "Hinton et al. (2015), τ = 3, weight 0.1"),
    "hard": Method("hard labels, class token", "Touvron et al. (2021), equation 3: the teacher's argmax as a label"),
    "token_soft": Method("soft labels, distillation token", "the weights of the soft labels, a token of their own"),
    "token_hard": Method("hard labels, distillation token (DeiT)", "Touvron et al. (2021), section 4"),
}


MEASURES = {
    **images.MEASURES,
    "class_accuracy": Measure("class token alone (%)", scale=100, digits=1),
    "distillation_accuracy": Measure("distillation token alone (%)", scale=100, digits=1),
}


class Deit(images.Taught):
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path, *, name: str = "digits") -> None:
        self._sizes = sizes = SIZES[name]
        super().__init__(
            name, config, folder, teacher=sizes.teacher, rate=sizes.teacher_rate, steps=sizes.teacher_steps
        )

    def _student(self, method: str) -> Model:
        token = method.startswith("token")
        return images.transformer(self._sizes.student, self.images.classes, distillation=token)

    def training(self, method: str, seed: int, steps: int) -> Training:
        sizes, teacher = self._sizes, teachers.none()
        if method != "student":
            model = wrappers.with_outputs(self.teacher, label=lambda outputs: jnp.argmax(outputs["logits"], -1))
            teacher = teachers.frozen(model, self.taught)
        views = data.compose(self.images.moved(seed), self.images.normalize)
        optimizer = adam(sizes.rate, steps)
        kd = images.distill(self.images, self._student(method), teacher, OBJECTIVES[method], optimizer, views)
        train = data.Resident(self.some(sizes.shown), sizes.batch, seed=seed, drop_remainder=True)
        return Training(kd, train, steps, self.splits)

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        tokens = ("class_logits", "distillation_logits") if method.startswith("token") else ()
        found = self.outputs(self._student(method), state.student, "logits", *tokens)
        label = self.images.test.arrays["label"]
        own = {name.replace("logits", "accuracy"): np.mean(found[name].argmax(-1) == label) for name in tokens}
        return self.measured(found["logits"], self.taught_logits) | {key: float(x) for key, x in own.items()}


def task(name: str, about: str) -> Task:
    """Returns the task on a set of images."""
    opened, title = functools.partial(Deit, name=name), f"Distillation token (DeiT): {name}"
    return images.task(title, about, opened, METHODS, SIZES[name].steps, measures=MEASURES)


TASKS = {
    "deit": task(
        "digits",
        "Teacher: a ResNet-14, trained on all 1,097 images. Student: a vision transformer with 16 patches of 2 × 2 "
        "pixels, 4 layers and a width of 48, which sees 300 of the images with their labels.",
    ),
    "deit_cifar100": task(
        "cifar100",
        "Teacher: a ResNet-56. Student: a vision transformer with 64 patches of 4 × 4 pixels and the layers of "
        "DeiT-Ti. Both see 45,000 images.",
    ),
}
