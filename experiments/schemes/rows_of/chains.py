"""One training after another: born-again generations, the self-teacher, assistants."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jaxkd
from experiments.schemes.trials import CE, Own, Part, Row, Setting, Trial, both
from jaxkd import schemes, teachers, wrappers
from jaxkd.types import Distiller, TrainState, Variables


def _member(name: str) -> Callable[[TrainState], Variables]:
    def pick(state: TrainState) -> Variables:
        return wrappers.get_member(state.student, name)

    return pick


def born_again(generations: int) -> Callable[[Setting], Trial]:
    """Generations of the student, each trained as long as a student alone."""

    def build(setting: Setting) -> Trial:
        steps, student = setting.steps, setting.student

        def make(own: Own) -> Distiller:
            kd = schemes.born_again(
                student,
                both(),
                first=jaxkd.combine(ce=CE),
                generations=generations,
                steps=steps,
                optimizer=setting.optimizer(steps),
            )
            return setting.placed(kd)

        def taught(own: Own) -> Distiller:
            return setting.placed(
                jaxkd.distill(student, teachers.placeholder(student), both(), optimizer=setting.optimizer(steps))
            )

        def first(own: Own) -> Distiller:
            return setting.placed(
                jaxkd.distill(student, teachers.none(), jaxkd.combine(ce=CE), optimizer=setting.optimizer(steps))
            )

        parts = [Part(first, steps), Part(taught, steps * generations)]
        return Trial(make, steps * (generations + 1), student, _member(str(generations)), parts, needs=())

    return build


def assistants(*between: str, teacher: str = "teacher") -> Callable[[Setting], Trial]:
    """A chain from a teacher through networks of other sizes; each link trains as long as a student alone."""

    def build(setting: Setting) -> Trial:
        steps = setting.steps
        models = {size: setting.problem.network(size) for size in (*between, "student")}

        def make(own: Own) -> Distiller:
            first = setting.teacher(own, teacher, teacher)
            kd = schemes.assistants(
                models["student"],
                first,
                both(),
                assistants={size: models[size] for size in between},
                steps=steps,
                optimizer=setting.optimizer(steps),
            )
            return setting.placed(kd)

        def link(before: str, size: str) -> Part:
            def part(own: Own) -> Distiller:
                taught_by = teachers.placeholder(setting.problem.network(before))
                kd = jaxkd.distill(models[size], taught_by, both(), optimizer=setting.optimizer(steps))
                return setting.placed(kd)

            return Part(part, steps)

        names = [teacher, *models]
        parts = [link(before, size) for before, size in itertools.pairwise(names)]
        return Trial(make, steps * len(models), models["student"], _member("student"), parts, needs=(teacher,))

    return build


ROWS = {
    "tf_self": Row("self-teacher (Tf-KD)", "self", born_again(1)),
    "born_again": Row("born again, 2 generations", "self", born_again(2)),
}
