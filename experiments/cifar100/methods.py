"""Every row of the published tables: its objective, its stages, and what it reads of the two networks.

A duration of the literature is one of 240 epochs; here it is a share of the run, so that a shorter one is the same
recipe, compressed: 30 epochs of initialization are an eighth of the epochs that follow, and come before them; a warm-up
of 20 epochs is a twelfth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jaxkd
from experiments.cifar100 import objectives, points, recipe
from experiments.cifar100.objectives import Setting
from jaxkd.schemes.phases import Stage
from jaxkd.types import Objective

INITIAL = 30 / 240


class Method(NamedTuple):
    """A row of the tables.

    Attributes:
      objective: of a setting, that of the training itself.
      taps: of a pair (teacher, student), the points of the teacher and those of the student that are read.
      initial: of a setting, what comes first, if anything.
      train_student: whether that trains the student, and not only what the objective learns.
    """

    objective: Callable[[Setting], Objective]
    taps: Callable[[str, str], points.Points]
    initial: Callable[[Setting], Objective] | None = None
    train_student: bool = True

    def teacher_taps(self, teacher: str, student: str) -> tuple[str, ...]:
        """The points of the teacher that are read, beside its logits."""
        return self.taps(teacher, student)[0]

    def student_taps(self, teacher: str, student: str) -> tuple[str, ...]:
        """The points of the student that are read, beside its logits."""
        return self.taps(teacher, student)[1]


METHODS: Mapping[str, Method] = {
    "student": Method(objectives.alone, points.nothing),
    "kd": Method(objectives.kd, points.nothing),
    "fitnet": Method(objectives.fitnet, points.second),
    "at": Method(objectives.at, points.all_stages),
    "sp": Method(objectives.sp, points.last),
    "cc": Method(objectives.cc, points.pooled),
    "vid": Method(objectives.vid, points.all_stages),
    "rkd": Method(objectives.rkd, points.pooled),
    "pkt": Method(objectives.pkt, points.pooled),
    "ab": Method(objectives.alone, points.before_relu, objectives.ab_initial),
    "ft": Method(objectives.ft, points.last, objectives.ft_initial, train_student=False),
    "fsp": Method(objectives.alone, points.stem_and_stages, objectives.fsp_initial),
    "nst": Method(objectives.nst, points.all_stages),
    "crd": Method(objectives.crd, points.pooled),
    "crd_kd": Method(objectives.crd_kd, points.pooled),
    "dkd": Method(objectives.dkd, points.nothing),
    "dist": Method(objectives.dist, points.nothing),
    "logit_std": Method(objectives.logit_std, points.nothing),
    "ofd": Method(objectives.ofd, points.before_relu),
    "review": Method(objectives.review_kd, points.review),
}


def initial_steps(method: Method, steps: int) -> int:
    """How long the initialization of a method is, beside a training of so many steps."""
    return 0 if method.initial is None else max(round(steps * INITIAL), 1)


def build(method: Method, setting: Setting, student: jaxkd.Model, teacher: jaxkd.Teacher) -> jaxkd.Distiller:
    """A method as a distiller.

    Args:
      method: of `METHODS`.
      setting: what its objective depends on.
      student: the network, tapped where the method reads it.
      teacher: likewise.

    Returns:
      A `Distiller` for normalized images with ``label`` and ``row``. An initialization comes on top of the steps.
    """
    optimizer = recipe.optimizer(setting.student, setting.steps)
    objective = method.objective(setting)
    if method.initial is None:
        return jaxkd.distill(student, teacher, objective, optimizer=optimizer)
    # The reference trains the paraphraser at 0.01 where the student is residual, and all else at the student's rate.
    rate = recipe.learning_rate(setting.student)
    slow = not method.train_student and setting.student.startswith(("resnet", "wrn"))
    first = Stage(
        method.initial(setting),
        recipe.sgd(0.01 if slow else rate),
        steps=initial_steps(method, setting.steps),
        student=method.train_student,
    )
    return jaxkd.schemes.staged(student, teacher, first, Stage(objective, optimizer))


def undefined(method: str, teacher: str, student: str) -> str | None:
    """Why a method does not exist for a pair, or None if it does.

    >>> undefined("fsp", "wrn_40_2", "wrn_40_1")
    'FSP compares matrices of channels by channels, and the two networks have different channels'
    >>> undefined("at", "vgg13", "resnet8")
    'it compares stage by stage, and the two networks have different numbers of stages'
    >>> undefined("fsp", "resnet20", "resnet8") is None
    True
    """
    try:
        maps, _ = METHODS[method].taps(teacher, student)
    except ValueError:
        return "it compares stage by stage, and the two networks have different numbers of stages"
    if method != "fsp":
        return None
    ours, theirs = ([recipe.shapes(name)[tap][-1] for tap in maps] for name in (student, teacher))
    if ours != theirs:
        return "FSP compares matrices of channels by channels, and the two networks have different channels"
    return None
