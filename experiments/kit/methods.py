"""The table of methods: objectives, taps, stages and published weights.

Durations of the literature are those of 240 epochs. Here they are shares of the training, so that a shorter one is the
same recipe, compressed: 30 epochs of initialization are an eighth of the epochs that follow, 20 epochs of warm-up are a
twelfth.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxkd
from experiments.kit.recipe import Problem
from experiments.kit.taps import Taps, each_stage, fixed, fused, last, paired
from jaxkd import losses, objectives, schemes
from jaxkd.types import Context, Objective

INITIAL = 30 / 240
WARM_UP = 20 / 240

Weights = Mapping[str, float]


class Setting(NamedTuple):
    """Networks, data and weights that an objective may depend on."""

    teacher: str = ""  # name of the network
    student: str = ""  # name of the network
    steps: int = 1  # steps of the training itself, without an initialization
    labels: np.ndarray | None = None  # labels of the training images, in the order of ``batch["row"]``, for CRD
    margins: Callable[[str], Any] | None = None  # OFD's margins of the teacher's channels at a tap before a ReLU
    stages: tuple[str, ...] | None = None  # taps that are compared stage by stage; by default those paired in order
    embedding: str = "pooled"  # tap of the embedding that relations compare
    labeled: str | None = None  # path of the mask of examples that have a label; None if all have one
    temperature: float = 4.0  # temperature of soft targets
    weights: Weights = {}  # weights of terms in place of the published ones

    @property
    def compared(self) -> tuple[str, ...]:
        """Stages that are compared, from shallow to deep."""
        return self.stages or tuple(paired(self.teacher, self.student))


Term = Callable[[Setting, Any], Objective]
"""A term in a setting, given its weight; None for a term that is published without one."""
Terms = Callable[[Setting, Weights], Objective]


class Method(NamedTuple):
    """A method of the tables."""

    title: str  # name in tables
    terms: Terms  # objective of the training itself
    taps: Callable[[str, str], Taps]  # ``(teacher, student) -> Taps`` that the terms read beside the logits
    weights: Weights = {}  # published weights of the terms that are added to a cross-entropy of weight 1
    initial: Terms | None = None  # objective of an initialization stage, if any
    train_student: bool = True  # whether the initialization trains the student, and not only what the objective learns

    def weigh(self, setting: Setting) -> Weights:
        return {"ce": 1.0, **self.weights, **setting.weights}

    def objective(self, setting: Setting) -> Objective:
        return self.terms(setting, self.weigh(setting))

    def initial_objective(self, setting: Setting) -> Objective:
        assert self.initial is not None
        return self.initial(setting, self.weigh(setting))

    def teacher_taps(self, teacher: str, student: str) -> tuple[str, ...]:
        """Returns the teacher's taps that the terms read, beside its logits."""
        return self.taps(teacher, student)[0]

    def student_taps(self, teacher: str, student: str) -> tuple[str, ...]:
        """Returns the student's taps that the terms read, beside its logits."""
        return self.taps(teacher, student)[1]


def cross_entropy(weight: float = 1.0, where: str | None = None) -> Objective:
    """Returns the cross-entropy on the labels, of the examples where a mask is True."""
    return jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=weight, where=where)


def soft_targets(weight: float = 1.0, temperature: float = 4.0) -> Objective:
    """Returns the divergence from the teacher's softened probabilities."""
    return jaxkd.term(losses.soft_target_kl, *_both("logits"), weight=weight, temperature=temperature)


def decoupled(weight: Any = 1.0, beta: float = 8.0) -> Objective:
    paths = *_both("logits"), "batch/label"
    return jaxkd.term(losses.decoupled_kd, *paths, weight=weight, alpha=1.0, beta=beta, temperature=4.0)


def relations(distance: float, angle: float) -> dict[str, Objective]:
    both = _both("pooled")
    return {
        "distance": jaxkd.term(losses.distance_relation, *both, weight=distance),
        "angle": jaxkd.term(losses.angle_relation, *both, weight=angle),
    }


def terms(**terms: Term) -> Terms:
    """Returns the objective that combines terms, each of which gets the weight of its name."""
    return lambda of, w: jaxkd.combine(**{name: make(of, w.get(name)) for name, make in terms.items()})


def with_labels(**others: Term) -> Terms:
    """Returns the objective of terms beside the cross-entropy."""
    return terms(ce=lambda of, weight: cross_entropy(weight, of.labeled), **others)


def _both(tap: str) -> tuple[str, str]:
    return f"student/{tap}", f"teacher/{tap}"


def _between(tap: str | Callable[[Setting], str], make: Callable[..., Objective], **options: Any) -> Term:
    """Returns a term between the students' and the teachers' outputs at a tap, which may depend on the setting."""
    return lambda of, weight: make(*_both(tap if isinstance(tap, str) else tap(of)), weight=weight, **options)


def _loss(loss: Callable[..., Any]) -> Callable[..., Objective]:
    return functools.partial(jaxkd.term, loss)


def _embedding(of: Setting) -> str:
    return of.embedding


def _stages(make: Callable[..., Objective]) -> Term:
    """Returns a term for every stage, all of one weight."""
    return lambda of, weight: jaxkd.combine(**{tap: make(*_both(tap), weight=weight) for tap in of.compared})


def _last(make: Callable[..., Objective]) -> Term:
    """Returns a term between the last stages."""

    def term(of: Setting, weight: Any) -> Objective:
        (teacher,), (student,) = last(of.teacher, of.student)
        return make(f"student/{student}", f"teacher/{teacher}", weight=weight)

    return term


def _deeper_weigh_more(make: Callable[[Setting, str], Callable[..., Objective]]) -> Term:
    """Returns a term ``make(setting, tap)`` for every stage; weights double with depth, up to the whole one."""

    def term(of: Setting, weight: Any) -> Objective:
        made = {}
        for i, stage in enumerate(of.compared):
            maps, share = _both(f"{stage}_preact"), 2.0 ** (i + 1 - len(of.compared))
            made[stage] = _of_one_size(make(of, f"{stage}_preact")(*maps, weight=weight * share), *maps)
        return jaxkd.combine(**made)

    return term


def _of_one_size(objective: Objective, student_path: str, teacher_path: str) -> Objective:
    """Returns an objective that sees the student's map at the size of the teacher's.

    Light students have smaller maps than their teachers, and a comparison neuron by neuron needs equally many. The
    reference learns a transposed convolution there; here the objective's own connector follows. Maps of one size are
    left unchanged.
    """

    def resized(context: Context) -> Context:
        student, teacher = (objectives.lookup(context, path) for path in (student_path, teacher_path))
        if student.shape[1:3] == teacher.shape[1:3]:
            return context
        shape = (student.shape[0], *teacher.shape[1:3], student.shape[3])
        return objectives.replace(context, {student_path: jax.image.resize(student, shape, "nearest")})

    return Objective(
        lambda key, context: objective.init(key, jax.eval_shape(resized, context)),
        lambda params, state, context, key: objective.apply(params, state, resized(context), key),
    )


def _overhaul(of: Setting, tap: str) -> Callable[..., Objective]:
    assert of.margins is not None
    return functools.partial(objectives.overhaul_connector, margin=of.margins(tap))


def _paraphraser(of: Setting, weight: Any) -> Objective:
    (teacher,), _ = last(of.teacher, of.student)
    return jaxkd.combine(paraphraser=objectives.paraphraser(f"teacher/{teacher}"))


def _flow(of: Setting, weight: Any) -> Objective:
    made = {}
    for first, second in itertools.pairwise(("stem", *of.compared)):
        maps = [(f"{side}/{first}", f"{side}/{second}") for side in ("student", "teacher")]
        made[f"{first}-{second}"] = jaxkd.term(losses.solution_flow, *maps)
    return jaxkd.combine(**made)


def _standardized_kl(student: Any, teacher: Any, *, temperature: float, where: Any = None) -> Any:
    standardized = losses.standardize_logits(student), losses.standardize_logits(teacher)
    return losses.soft_target_kl(*standardized, temperature=temperature, where=where)


def _review(of: Setting, weight: Any) -> Objective:
    teacher, student = fused(of.teacher, of.student)
    schedule = warm_up(review_weight(of.teacher, of.student) if weight is None else weight, of.steps)
    paths = [f"student/{tap}" for tap in student], [f"teacher/{tap}" for tap in teacher]
    return objectives.review(*paths, weight=schedule)


def warm_up(weight: float, steps: int) -> optax.Schedule:
    """Returns a schedule from 0 to the weight over a twelfth of the training."""
    return optax.linear_schedule(0.0, weight, max(round(steps * WARM_UP), 1))


def dkd_beta(teacher: str, student: str) -> float:
    """Returns DKD's β, which is larger where the teacher is more confident.

    The authors' code has 8 for teachers of width 4, ResNet50 and WRN → ShuffleNetV1, 6 for WRN → WRN and VGG13, and 2
    for the narrow ResNets, which pairs without a published value get here as well.

    >>> dkd_beta("resnet32x4", "resnet8x4"), dkd_beta("wrn_40_2", "wrn_16_2"), dkd_beta("resnet56", "resnet20")
    (8.0, 6.0, 2.0)
    """
    if teacher in ("resnet32x4", "resnet50"):
        return 8.0
    if teacher.startswith("wrn"):
        return 8.0 if student.startswith("shufflenet") else 6.0
    return 6.0 if teacher.startswith("vgg") else 2.0


def review_weight(teacher: str, student: str) -> float:
    """Returns ReviewKD's weight.

    Published: 5 for WRN, resnet32x4 → resnet8x4 and ShuffleNetV1, 8 for ShuffleNetV2, 0.6 for resnet56 → resnet20 and
    1 for resnet110 → resnet32, which pairs without a published value get here as well.
    """
    if student == "shufflenet_v2":
        return 8.0
    if teacher.startswith("wrn") or teacher == "resnet32x4" or student == "shufflenet_v1":
        return 5.0
    return 0.6 if (teacher, student) == ("resnet56", "resnet20") else 1.0


def _kd(of: Setting, weight: Any) -> Objective:
    return soft_targets(weight, of.temperature)


def _crd(of: Setting, weight: Any) -> Objective:
    return objectives.crd(*_both("pooled"), of.labels, weight=weight, index_path="batch/row")


def _dkd(of: Setting, weight: Any) -> Objective:
    return decoupled(warm_up(weight, of.steps), dkd_beta(of.teacher, of.student))


_attention, _selectivity = _stages(_loss(losses.attention_transfer)), _stages(_loss(losses.neuron_selectivity))
_hint = _between(lambda of: (of.stages or ("stage1", "stage2"))[1], objectives.hint)
_similarities = _last(_loss(losses.similarity_preserving))
# The benchmark's translator, to which its published accuracies belong, has BatchNorms.
_factors = _last(functools.partial(objectives.factor_translator, batch_norm=True))
_cc = _between("pooled", functools.partial(objectives.on_embeddings, losses.consecutive_correlation))
_distances, _angles = (_between(_embedding, _loss(one)) for one in (losses.distance_relation, losses.angle_relation))
_probabilities = _between(_embedding, _loss(losses.probabilistic_transfer))
_dist = _between("logits", _loss(losses.dist), beta=1.0, gamma=1.0, temperature=4.0)
_standardized = _between("logits", _loss(_standardized_kl), temperature=2.0)
_ab, _ofd = _deeper_weigh_more(lambda *_: objectives.boundary_connector), _deeper_weigh_more(_overhaul)
_rkd_weights = {"distance": 25.0, "angle": 50.0}
_ft_initial = terms(ft=_paraphraser)
METHODS: Mapping[str, Method] = {
    "student": Method("student alone", with_labels(), fixed()),
    "kd": Method("KD", with_labels(kd=_kd), fixed(), {"ce": 0.1, "kd": 0.9}),
    "fitnet": Method("FitNet", with_labels(hint=_hint), fixed("stage2"), {"hint": 100.0}),
    "at": Method("AT", with_labels(at=_attention), each_stage(), {"at": 1000.0}),
    "sp": Method("SP", with_labels(sp=_similarities), last, {"sp": 3000.0}),
    "cc": Method("CC", with_labels(cc=_cc), fixed("pooled"), {"cc": 0.02}),
    "vid": Method("VID", with_labels(vid=_stages(objectives.variational)), each_stage(), {"vid": 1.0}),
    "rkd": Method("RKD", with_labels(distance=_distances, angle=_angles), fixed("pooled"), _rkd_weights),
    "pkt": Method("PKT", with_labels(pkt=_probabilities), fixed("pooled"), {"pkt": 3e4}),
    "ab": Method("AB", with_labels(), each_stage("{}_preact"), {"ab": 3e-3}, terms(ab=_ab)),
    "ft": Method("FT", with_labels(ft=_factors), last, {"ft": 200.0}, _ft_initial, train_student=False),
    "fsp": Method("FSP", with_labels(), each_stage("{}", "stem"), {}, terms(fsp=_flow)),
    "nst": Method("NST", with_labels(nst=_selectivity), each_stage(), {"nst": 50.0}),
    "crd": Method("CRD", with_labels(crd=_crd), fixed("pooled"), {"crd": 0.8}),
    "crd_kd": Method("CRD + KD", with_labels(kd=_kd, crd=_crd), fixed("pooled"), {"kd": 1.0, "crd": 0.8}),
    "dkd": Method("DKD", with_labels(dkd=_dkd), fixed(), {"dkd": 1.0}),
    "dist": Method("DIST", with_labels(dist=_dist), fixed(), {"dist": 2.0}),
    "logit_std": Method("KD + logit std.", with_labels(kd=_standardized), fixed(), {"ce": 0.1, "kd": 9.0}),
    "ofd": Method("OFD", with_labels(ofd=_ofd), each_stage("{}_preact"), {"ofd": 1e-3}),
    "review": Method("ReviewKD", with_labels(review=_review), fused),
}
TITLES = {name: method.title for name, method in METHODS.items()}


def in_order(names: Any) -> list[str]:
    """Returns names of methods in the order of the tables, and then others by name."""
    return [*(name for name in METHODS if name in names), *sorted(set(names) - set(METHODS))]


def initial_steps(method: Method, steps: int) -> int:
    return 0 if method.initial is None else max(round(steps * INITIAL), 1)


def build(
    method: Method, setting: Setting, student: jaxkd.Model, teacher: jaxkd.Teacher, problem: Problem
) -> jaxkd.Distiller:
    """Returns a method as a distiller for normalized images, ``label`` and ``row``."""
    optimizer = problem.optimizer(setting.student, setting.steps)
    objective = method.objective(setting)
    if method.initial is None:
        return jaxkd.distill(student, teacher, objective, optimizer=optimizer)
    initial, trained = method.initial_objective(setting), method.train_student
    slow, steps = problem.initial_optimizer(setting.student, trained), initial_steps(method, setting.steps)
    first = schemes.phases.Stage(initial, slow, steps=steps, student=trained)
    return schemes.staged(student, teacher, first, schemes.phases.Stage(objective, optimizer))


def defined(name: str, teacher: str, student: str, problem: Problem) -> bool:
    """Returns whether a pair has stages that a method can compare; FSP needs equal channels."""
    try:
        maps, _ = METHODS[name].taps(teacher, student)
    except ValueError:
        return False
    if name != "fsp":
        return True
    of_student, of_teacher = ([problem.shapes(network)[tap][-1] for tap in maps] for network in (student, teacher))
    return of_student == of_teacher
