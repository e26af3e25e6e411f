"""Teachers and students that differ in architecture or input; discriminators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jaxkd
from experiments.kit.methods import soft_targets
from experiments.kit.recipe import Transform
from experiments.schemes.method import CE, Method, Own, Setting, Training, supervised, taught
from experiments.schemes.teachers import LEFT, PEN
from jaxkd import data, objectives, teachers, wrappers
from jaxkd.objectives import discriminators
from jaxkd.types import Model, Teacher

DISCRIMINATOR = objectives.adversarial(
    "student/logits", "teacher/logits", discriminator=discriminators.mlp(64), label_path="batch/label", weight=0.1
)
GAME = jaxkd.combine(ce=CE, kd=soft_targets(), gan=DISCRIMINATOR)
"""Soft targets, and a discriminator of the logits that also classifies (Xu et al., 2018)."""

Network = Callable[[Setting], Model]
MakeTeacher = Callable[[Setting], Callable[[Own], Teacher]]


def _usual_teacher(setting: Setting) -> Callable[[Own], Teacher]:
    return setting.teacher


def _lstm_teacher(setting: Setting) -> Callable[[Own], Teacher]:
    return lambda own: teachers.frozen(setting.problem.lstm("teacher"), own["lstm"])


def _left_teacher(setting: Setting) -> Callable[[Own], Teacher]:
    return lambda own: teachers.frozen(wrappers.with_inputs(setting.problem.network("left"), image="left"), own["left"])


def _usual(setting: Setting) -> Model:
    return setting.student


def _lstm(setting: Setting) -> Model:
    return setting.problem.lstm("student")


def _right(setting: Setting) -> Model:
    return wrappers.with_inputs(setting.student, image="right")


def _spectral(setting: Setting) -> Model:
    return wrappers.with_inputs(setting.student, image="spectrum")


def _pen(setting: Setting) -> Model:
    return setting.problem.lstm("student", inputs=("strokes", "strokes_mask"))


def adversarial(student: Network, teacher: MakeTeacher, *needs: str) -> Callable[[Setting], Training]:
    """Returns the training of a student by a teacher with a discriminator."""
    return lambda setting: taught(
        setting, setting.steps, student(setting), teacher(setting), objective=GAME, needs=needs
    )


def other_student(
    student: Network, *more: Transform, teacher: MakeTeacher = _usual_teacher, needs: tuple[str, ...] = ("teacher",)
) -> dict[str, Any]:
    """Returns the training of another student, and its baselines."""

    def alone(setting: Setting, steps: int) -> Training:
        return supervised(setting, steps, student(setting), *more)

    def offline(setting: Setting, steps: int) -> Training:
        return taught(setting, steps, student(setting), setting.teacher, *more)

    def build(setting: Setting) -> Training:
        return taught(setting, setting.steps, student(setting), teacher(setting), *more, needs=needs)

    return {"build": build, "alone": alone, "offline": offline}


LSTM = other_student(_lstm) | {"build": adversarial(_lstm, _usual_teacher, "teacher")}
HALVES = other_student(_right, LEFT, teacher=_left_teacher, needs=("left",))
MODAL = "cross-modal"

METHODS = {
    "adversarial": Method("adversarial", "adversarial", adversarial(_usual, _usual_teacher, "teacher")),
    "from_lstm": Method("LSTM teacher, adversarial", "adversarial", adversarial(_usual, _lstm_teacher, "lstm")),
    "to_lstm": Method("LSTM student, adversarial", "adversarial", **LSTM),
    "halves": Method("teacher left half, student right half", MODAL, **HALVES),
    "spectrum": Method("student of the spectrum", MODAL, **other_student(_spectral, data.spectrum)),
    "strokes": Method("LSTM student of pen strokes", MODAL, **other_student(_pen, PEN)),
}
