"""Born-again generations, assistants, and students of teachers of all sizes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jaxkd
from experiments.schemes.method import BOTH, CE, Method, Own, Part, Setting, Training, taught
from jaxkd import schemes, teachers, wrappers
from jaxkd.types import Distiller, Model

Build = Callable[[Setting], Training]


def _part(setting: Setting, model: Model, steps: int, before: Model | None) -> Part:
    """Returns one training of a chain: on labels, or by the network before it."""
    teacher = teachers.none() if before is None else teachers.placeholder(before)
    objective = jaxkd.combine(ce=CE) if before is None else BOTH
    kd = jaxkd.distill(model, teacher, objective, optimizer=setting.optimizer())
    return Part(lambda own: setting.placed(kd), steps)


def born_again(generations: int) -> Build:
    """Returns generations of the student, each trained as long as a student alone."""

    def build(setting: Setting) -> Training:
        steps, student = setting.steps, setting.student

        def kd(own: Own) -> Distiller:
            return schemes.born_again(
                student,
                BOTH,
                first=jaxkd.combine(ce=CE),
                generations=generations,
                steps=steps,
                optimizer=setting.optimizer(),
            )

        return setting.training(
            kd,
            steps=steps * (generations + 1),
            pick=lambda state: wrappers.get_member(state.student, str(generations)),
            parts=[_part(setting, student, steps, None), _part(setting, student, steps * generations, student)],
            needs=(),
        )

    return build


def assistants(*between: str, teacher: str = "teacher") -> Build:
    """Returns a chain from a teacher through networks of other sizes."""

    def build(setting: Setting) -> Training:
        steps, network = setting.steps, setting.problem.network
        models = {size: network(size) for size in (*between, "student")}

        def kd(own: Own) -> Distiller:
            first = setting.teacher(own, teacher, teacher)
            return schemes.assistants(
                models["student"],
                first,
                BOTH,
                assistants={size: models[size] for size in between},
                steps=steps,
                optimizer=setting.optimizer(),
            )

        links = itertools.pairwise([teacher, *models])
        return setting.training(
            kd,
            steps=steps * len(models),
            pick=lambda state: wrappers.get_member(state.student, "student"),
            parts=[_part(setting, models[size], steps, network(before)) for before, size in links],
            needs=(teacher,),
        )

    return build


def of_size(size: str) -> Build:
    """Returns the usual student of a teacher of a size."""
    return lambda setting: taught(
        setting, setting.steps, setting.student, lambda own: setting.teacher(own, size, size), needs=(size,)
    )


METHODS = {
    "tf_self": Method("self-teacher (Tf-KD)", "self", born_again(1)),
    "born_again": Method("born again, 2 generations", "self", born_again(2)),
}
CAPACITY = {
    **{
        f"gap_{size}": Method(f"teacher of size {size}", "teacher size", of_size(size))
        for size in ("large", "teacher", "wide", "huge")
    },
    "assistant": Method("teacher, one assistant", "assistants", assistants("middle")),
    "assistants": Method("teacher, two assistants", "assistants", assistants("large", "middle")),
    "found_chain": Method(
        "teacher, the chain that was found",
        "assistants",
        lambda setting: assistants(*setting.chain[:-1])(setting),
        searched=True,
    ),
    "huge_assistant": Method("huge, one assistant", "assistants", assistants("large", teacher="huge")),
    "huge_assistants": Method(
        "huge, three assistants", "assistants", assistants("wide", "teacher", "large", teacher="huge")
    ),
}
