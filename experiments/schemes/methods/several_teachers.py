"""Chains of teachers, several teachers, the student's average, and teachers that flow into it."""

import itertools
from typing import Any

import optax

import jaxkd
from experiments.kit.methods import decoupled, soft_targets
from experiments.schemes.method import BOTH, CE, LABELS, Method, Own, Part, Setting, Training, deferred, taught
from jaxkd import losses, objectives, schemes, teachers, wrappers
from jaxkd.types import Distiller, Model, Objective, Teacher


def _part(setting: Setting, model: Model, steps: int, before: Model | None) -> Part:
    """Returns one training of a chain: on labels, or by the network before it."""
    teacher = teachers.none() if before is None else teachers.placeholder(before)
    kd = jaxkd.distill(model, teacher, LABELS if before is None else BOTH, optimizer=setting.optimizer())
    return Part(lambda own: setting.placed(kd), steps)


@deferred
def born_again(setting: Setting, count: int) -> Training:
    """Returns generations of the student, each trained as long as a student alone."""
    steps, student = setting.steps, setting.student
    options: Any = {"first": LABELS, "generations": count, "steps": steps}
    return setting.training(
        lambda own: schemes.born_again(student, BOTH, optimizer=setting.optimizer(), **options),
        steps=steps * (count + 1),
        pick=lambda state: wrappers.get_member(state.student, str(count)),
        parts=[_part(setting, student, steps, None), _part(setting, student, steps * count, student)],
        needs=(),
    )


@deferred
def assistants(setting: Setting, *between: str, teacher: str = "teacher") -> Training:
    """Returns a chain from a teacher through networks of other sizes."""
    steps, network, student = setting.steps, setting.problem.network, setting.student
    options: Any = {"assistants": {size: network(size) for size in between}, "steps": steps}

    links = itertools.pairwise([teacher, *between, "student"])
    optimizer = setting.optimizer()
    return setting.training(
        lambda own: schemes.assistants(student, setting.teacher(own, teacher), BOTH, optimizer=optimizer, **options),
        steps=steps * (len(between) + 1),
        pick=lambda state: wrappers.get_member(state.student, "student"),
        parts=[_part(setting, network(size), steps, network(before)) for before, size in links],
        needs=(teacher,),
    )


def found_chain(setting: Setting) -> Training:
    return assistants(*setting.chain[:-1])(setting)


@deferred
def of_size(setting: Setting, size: str) -> Training:
    return taught(setting, setting.steps, setting.student, lambda own: setting.teacher(own, size), needs=(size,))


# Several teachers at once.

TWO = {"a": "teacher", "b": "large"}  # the members of an ensemble: networks by their names in it


@deferred
def ensemble(setting: Setting, objective: Objective, **options: Any) -> Training:

    def teacher(own: Own) -> Teacher:
        return teachers.ensemble({key: setting.teacher(own, size) for key, size in TWO.items()}, **options)

    return taught(setting, setting.steps, setting.student, teacher, objective=objective, needs=tuple(TWO.values()))


@deferred
def average(setting: Setting, objective: Objective) -> Training:
    teacher = teachers.ema(setting.student, decay=jaxkd.distillers.ema_warmup(0.99))
    return taught(setting, setting.steps, setting.student, lambda own: teacher, objective=objective, needs=())


def label_sets(setting: Setting) -> Training:
    """Returns the training by two teachers, each of which knows half of the classes."""
    count = setting.problem.classes
    halves = {"a": list(range(count // 2)), "b": list(range(count // 2, count))}
    student = wrappers.select_classes(setting.student, {f"of_{name}": known for name, known in halves.items()})
    paths = {name: (f"student/of_{name}", f"teacher/{name}/known") for name in halves}
    terms = {name: jaxkd.term(losses.soft_target_kl, *both, temperature=4.0) for name, both in paths.items()}
    half = setting.problem.network("half")
    experts = {name: wrappers.expand_classes(half, known, count) for name, known in halves.items()}

    def kd(own: Own) -> Distiller:
        members = {name: teachers.frozen(model, own[f"half_{name}"]) for name, model in experts.items()}
        teacher = teachers.ensemble(members, average=teachers.average_probabilities(4.0))
        return jaxkd.distill(student, teacher, jaxkd.combine(ce=CE, **terms), optimizer=setting.optimizer())

    return setting.training(kd, needs=("half_a", "half_b"))


def flow(setting: Setting) -> Training:
    """Returns the training of a student into which the teacher's stages flow."""
    problem = setting.problem
    taps = problem.taps("student")
    mixes = {name: wrappers.FlowEdge(taps[name], [name]) for name in ("stage1", "stage2", "stage3")}
    share = optax.linear_schedule(1.0, 0.0, setting.steps // 2)
    student = wrappers.with_flow(problem.module("student"), mixes, share, taps={"pooled": taps["pooled"]})
    objective = jaxkd.combine(ce=CE, kd=soft_targets(), alone=schemes.transfer.dependence_loss(weight=10.0))

    # A map that grows as fast as its share falls would keep the student dependent until the last step.
    mapped = {name: {"weights": "student", "maps": "maps"} for name in mixes}
    by_part = {"student": setting.optimizer(), "maps": optax.adam(1e-4)}
    optimizer = optax.multi_transform(by_part, {"student": "student", "flow": mapped})
    options: Any = {"optimizer": optimizer, "objective_optimizer": setting.optimizer()}
    return setting.training(
        lambda own: schemes.knowledge_flow(student, setting.teacher(own), objective, **options),
        pick=lambda state: wrappers.extract_student(state.student),
    )


CRD = objectives.crd_in_batch("student/pooled", "teacher/pooled", weight=0.1)
_BOTH = "teacher/a/pooled", "teacher/b/pooled"
VOTES = jaxkd.term(losses.voted_dissimilarity, "student/pooled", _BOTH, margin=1.0, weight=0.1)
VOTED = jaxkd.combine(ce=CE, kd=soft_targets(), votes=VOTES)
LEARNED = objectives.learned_ensemble(temperature=4.0)
SEVERAL, CHAIN = "several teachers", "assistants"
GAPS = ("large", "teacher", "wide", "huge")

METHODS = {
    "tf_self": Method("self-teacher (Tf-KD)", "self", born_again(1)),
    "born_again": Method("born again, 2 generations", "self", born_again(2)),
    "ema": Method("mean (EMA) teacher", "self", average(BOTH)),
    "ema_crd": Method("mean teacher with CRD", "composed", average(jaxkd.combine(ce=CE, crd=CRD))),
    "averaged": Method("two teachers, averaged", SEVERAL, ensemble(BOTH)),
    "weighted": Method("two teachers, weighted 0.7 : 0.3", SEVERAL, ensemble(BOTH, weights={"a": 0.7, "b": 0.3})),
    "learned": Method("two teachers, learned weights", SEVERAL, ensemble(jaxkd.combine(ce=CE, kd=LEARNED))),
    "voted": Method("two teachers, voted dissimilarity", SEVERAL, ensemble(VOTED)),
    "label_sets": Method("two teachers of half the classes", SEVERAL, label_sets),
    "ensemble_dkd": Method("two teachers with DKD", "composed", ensemble(jaxkd.combine(ce=CE, dkd=decoupled()))),
    "knowledge_flow": Method("knowledge flow", SEVERAL, flow),
    **{f"gap_{size}": Method(f"teacher of size {size}", "teacher size", of_size(size)) for size in GAPS},
    "assistant": Method("teacher, one assistant", CHAIN, assistants("middle")),
    "assistants": Method("teacher, two assistants", CHAIN, assistants("large", "middle")),
    "found_chain": Method("teacher, the chain that was found", CHAIN, found_chain, searched=True),
    "huge_assistant": Method("huge, one assistant", CHAIN, assistants("large", teacher="huge")),
    "huge_assistants": Method("huge, three assistants", CHAIN, assistants("wide", "teacher", "large", teacher="huge")),
}
