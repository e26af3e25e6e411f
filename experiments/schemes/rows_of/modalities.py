"""Teachers and students that differ: in architecture, with a discriminator between them, or in what they see."""

from __future__ import annotations

from collections.abc import Callable

import jaxkd
from experiments.schemes.trained import LEFT, PEN
from experiments.schemes.trials import CE, Own, Row, Setting, Trial, soft, supervised, taught
from jaxkd import data, objectives, teachers, wrappers
from jaxkd.objectives import discriminators
from jaxkd.types import Model, Teacher

GAME = jaxkd.combine(
    ce=CE,
    kd=soft(),
    gan=objectives.adversarial(
        "student/logits", "teacher/logits", discriminator=discriminators.mlp(64), label_path="batch/label", weight=0.1
    ),
)
"""Soft targets, and a discriminator of the logits that also tells classes (Xu et al., 2018)."""


def adversarial(setting: Setting) -> Trial:
    """The usual pair with a discriminator."""
    return taught(setting, setting.steps, setting.student, setting.teacher, objective=GAME)


def _lstm(setting: Setting) -> Callable[[Own], Teacher]:
    return lambda own: teachers.frozen(setting.problem.lstm("teacher"), own["lstm"])


def from_lstm(setting: Setting) -> Trial:
    """A recurrent teacher of the convolutional student."""
    return taught(setting, setting.steps, setting.student, _lstm(setting), objective=GAME, needs=("lstm",))


def to_lstm(setting: Setting) -> Trial:
    """The convolutional teacher of a recurrent student."""
    return taught(setting, setting.steps, setting.problem.lstm("student"), setting.teacher, objective=GAME)


def lstm_alone(setting: Setting, steps: int) -> Trial:
    """The recurrent student alone."""
    return supervised(setting, steps, setting.problem.lstm("student"))


def lstm_offline(setting: Setting, steps: int) -> Trial:
    """The recurrent student, taught by soft targets alone."""
    return taught(setting, steps, setting.problem.lstm("student"), setting.teacher)


def _right(setting: Setting) -> Model:
    return wrappers.with_inputs(setting.problem.network("student"), image="right")


def _left(setting: Setting) -> Callable[[Own], Teacher]:
    return lambda own: teachers.frozen(wrappers.with_inputs(setting.problem.network("left"), image="left"), own["left"])


def halves(setting: Setting) -> Trial:
    """The teacher sees the left half of an image, the student the right one."""
    return taught(setting, setting.steps, _right(setting), _left(setting), LEFT, needs=("left",))


def _spectral(setting: Setting) -> Model:
    return wrappers.with_inputs(setting.student, image="spectrum")


def spectrum(setting: Setting) -> Trial:
    """The teacher sees the image, the student its spectrum."""
    return taught(setting, setting.steps, _spectral(setting), setting.teacher, data.spectrum)


def _pen(setting: Setting) -> Model:
    network = setting.problem.lstm("student", inputs=("strokes", "strokes_mask"))
    return network


def pen(setting: Setting) -> Trial:
    """The teacher sees the image, a recurrent student the path of a pen."""
    return taught(setting, setting.steps, _pen(setting), setting.teacher, PEN)


ROWS = {
    "adversarial": Row("adversarial", "adversarial", adversarial),
    "from_lstm": Row("LSTM teacher, adversarial", "adversarial", from_lstm),
    "to_lstm": Row("LSTM student, adversarial", "adversarial", to_lstm, lstm_alone, lstm_offline),
    "halves": Row(
        "teacher left half, student right half",
        "cross-modal",
        halves,
        lambda setting, steps: supervised(setting, steps, _right(setting), LEFT),
        lambda setting, steps: taught(setting, steps, _right(setting), setting.teacher, LEFT),
    ),
    "spectrum": Row(
        "student of the spectrum",
        "cross-modal",
        spectrum,
        lambda setting, steps: supervised(setting, steps, _spectral(setting), data.spectrum),
        lambda setting, steps: taught(setting, steps, _spectral(setting), setting.teacher, data.spectrum),
    ),
    "strokes": Row(
        "LSTM student of pen strokes",
        "cross-modal",
        pen,
        lambda setting, steps: supervised(setting, steps, _pen(setting), PEN),
        lambda setting, steps: taught(setting, steps, _pen(setting), setting.teacher, PEN),
    ),
}
