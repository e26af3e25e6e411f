"""What each method minimizes, with the weights of the literature's common protocol."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import jaxkd
from experiments.cifar100 import points
from jaxkd import losses, objectives
from jaxkd.types import Context, Objective

WARM_UP = 20 / 240


class Setting(NamedTuple):
    """What an objective may depend on.

    Attributes:
      teacher: name of the network.
      student: name of the network.
      steps: of the training itself, without an initialization.
      labels: of the training images, in the order of ``batch["row"]``.
      margins: OFD's margin of the teacher's channels at each of its pre-activation points.
    """

    teacher: str
    student: str
    steps: int
    labels: np.ndarray
    margins: Callable[[str], Any]


def _ce(weight: float = 1.0) -> Objective:
    return jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=weight)


def _logits(loss: Callable[..., Any], weight: Any, **hyperparameters: Any) -> Objective:
    return jaxkd.term(loss, "student/logits", "teacher/logits", weight=weight, **hyperparameters)


def _features(loss: Callable[..., Any], taps: Any, setting: Setting, weight: float) -> dict[str, Objective]:
    """A term for each pair of points, of one weight."""
    pairs = zip(*taps(setting.teacher, setting.student), strict=True)
    return {
        f"{theirs}": jaxkd.term(loss, f"student/{ours}", f"teacher/{theirs}", weight=weight) for theirs, ours in pairs
    }


def _of_one_size(objective: Objective, ours: str, theirs: str) -> Objective:
    """An objective that sees the student's map at the size of the teacher's, by nearest neighbours.

    Light students have smaller maps than their teachers, and what is compared neuron by neuron needs as many. The
    reference learns a transposed convolution there; here the objective's own connector follows. Maps of one size are
    left as they are.
    """

    def seen(context: Context) -> Context:
        student, teacher = (objectives.lookup(context, path) for path in (ours, theirs))
        if student.shape[1:3] == teacher.shape[1:3]:
            return context
        shape = (student.shape[0], *teacher.shape[1:3], student.shape[3])
        return objectives.replace(context, {ours: jax.image.resize(student, shape, "nearest")})

    return Objective(
        lambda key, context: objective.init(key, jax.eval_shape(seen, context)),
        lambda params, state, context, key: objective.apply(params, state, seen(context), key),
    )


def kd(setting: Setting) -> Objective:
    """Soft targets."""
    return jaxkd.combine(ce=_ce(0.1), kd=_logits(losses.soft_target_kl, 0.9, temperature=4.0))


def alone(setting: Setting) -> Objective:
    """Cross-entropy alone."""
    return jaxkd.combine(ce=_ce())


def fitnet(setting: Setting) -> Objective:
    """A hint at the second stage."""
    return jaxkd.combine(ce=_ce(), hint=objectives.hint("student/stage2", "teacher/stage2", weight=100.0))


def at(setting: Setting) -> Objective:
    """Attention transfer at every stage."""
    return jaxkd.combine(
        ce=_ce(), at=jaxkd.combine(**_features(losses.attention_transfer, points.all_stages, setting, 1000.0))
    )


def sp(setting: Setting) -> Objective:
    """Similarities of the last stage."""
    (theirs,), (ours,) = points.last(setting.teacher, setting.student)
    return jaxkd.combine(
        ce=_ce(), sp=jaxkd.term(losses.similarity_preserving, f"student/{ours}", f"teacher/{theirs}", weight=3000.0)
    )


def cc(setting: Setting) -> Objective:
    """Consecutive correlations of learned embeddings."""
    return jaxkd.combine(
        ce=_ce(),
        cc=objectives.on_embeddings(losses.consecutive_correlation, "student/pooled", "teacher/pooled", weight=0.02),
    )


def vid(setting: Setting) -> Objective:
    """Variational information distillation at every stage."""
    terms = {
        stage: objectives.variational(f"student/{stage}", f"teacher/{stage}")
        for stage in points.paired(setting.teacher, setting.student)
    }
    return jaxkd.combine(ce=_ce(), vid=jaxkd.combine(**terms))


def rkd(setting: Setting) -> Objective:
    """Distances and angles."""
    pooled = "student/pooled", "teacher/pooled"
    return jaxkd.combine(
        ce=_ce(),
        distance=jaxkd.term(losses.distance_relation, *pooled, weight=25.0),
        angle=jaxkd.term(losses.angle_relation, *pooled, weight=50.0),
    )


def pkt(setting: Setting) -> Objective:
    """Probabilistic transfer."""
    return jaxkd.combine(
        ce=_ce(),
        pkt=jaxkd.term(losses.probabilistic_transfer, "student/pooled", "teacher/pooled", weight=3e4),
    )


def ab_initial(setting: Setting) -> Objective:
    """Activation boundaries of every stage; deeper ones weigh more."""
    stages = points.paired(setting.teacher, setting.student)
    terms = {
        stage: _of_one_size(
            objectives.boundary_connector(*maps, margin=1.0, weight=3e-3 * 2.0 ** (i + 1 - len(stages))), *maps
        )
        for i, stage in enumerate(stages)
        for maps in [(f"student/{stage}_preact", f"teacher/{stage}_preact")]
    }
    return jaxkd.combine(ab=jaxkd.combine(**terms))


def ft_initial(setting: Setting) -> Objective:
    """The paraphraser of the teacher's last stage."""
    (theirs,), _ = points.last(setting.teacher, setting.student)
    return jaxkd.combine(ft=jaxkd.combine(paraphraser=objectives.paraphraser(f"teacher/{theirs}")))


def ft(setting: Setting) -> Objective:
    """Factor transfer, with the paraphraser of the initialization."""
    (theirs,), (ours,) = points.last(setting.teacher, setting.student)
    return jaxkd.combine(
        ce=_ce(), ft=objectives.factor_translator(f"student/{ours}", f"teacher/{theirs}", weight=200.0)
    )


def fsp_initial(setting: Setting) -> Objective:
    """The flow between every two consecutive maps."""
    maps, _ = points.stem_and_stages(setting.teacher, setting.student)
    terms = {
        f"{first}-{second}": jaxkd.term(
            losses.solution_flow,
            (f"student/{first}", f"student/{second}"),
            (f"teacher/{first}", f"teacher/{second}"),
        )
        for first, second in itertools.pairwise(maps)
    }
    return jaxkd.combine(fsp=jaxkd.combine(**terms))


def nst(setting: Setting) -> Objective:
    """Neuron selectivity at every stage."""
    return jaxkd.combine(
        ce=_ce(), nst=jaxkd.combine(**_features(losses.neuron_selectivity, points.all_stages, setting, 50.0))
    )


def _crd_term(setting: Setting) -> Objective:
    return objectives.crd("student/pooled", "teacher/pooled", setting.labels, weight=0.8, index_path="batch/row")


def crd(setting: Setting) -> Objective:
    """The contrastive loss."""
    return jaxkd.combine(ce=_ce(), crd=_crd_term(setting))


def crd_kd(setting: Setting) -> Objective:
    """The contrastive loss and soft targets."""
    return jaxkd.combine(ce=_ce(), kd=_logits(losses.soft_target_kl, 1.0, temperature=4.0), crd=_crd_term(setting))


def dkd(setting: Setting) -> Objective:
    """Decoupled soft targets."""
    return jaxkd.combine(
        ce=_ce(),
        dkd=jaxkd.term(
            losses.decoupled_kd,
            "student/logits",
            "teacher/logits",
            "batch/label",
            weight=warm_up(1.0, setting.steps),
            alpha=1.0,
            beta=dkd_beta(setting.teacher, setting.student),
            temperature=4.0,
        ),
    )


def dist(setting: Setting) -> Objective:
    """Correlations of rows and columns."""
    return jaxkd.combine(ce=_ce(), dist=_logits(losses.dist, 2.0, beta=1.0, gamma=1.0, temperature=4.0))


def _standardized_kl(student: Any, teacher: Any, *, temperature: float, where: Any = None) -> Any:
    standardized = losses.standardize_logits(student), losses.standardize_logits(teacher)
    return losses.soft_target_kl(*standardized, temperature=temperature, where=where)


def logit_std(setting: Setting) -> Objective:
    """Soft targets of standardised logits."""
    return jaxkd.combine(ce=_ce(0.1), kd=_logits(_standardized_kl, 9.0, temperature=2.0))


def ofd(setting: Setting) -> Objective:
    """Partial distances of every stage; deeper ones weigh more."""
    stages = points.paired(setting.teacher, setting.student)
    terms = {
        stage: _of_one_size(
            objectives.overhaul_connector(
                *maps, setting.margins(f"{stage}_preact"), weight=1e-3 * 2.0 ** (i + 1 - len(stages))
            ),
            *maps,
        )
        for i, stage in enumerate(stages)
        for maps in [(f"student/{stage}_preact", f"teacher/{stage}_preact")]
    }
    return jaxkd.combine(ce=_ce(), ofd=jaxkd.combine(**terms))


def review_kd(setting: Setting) -> Objective:
    """Fused stages against the teacher's."""
    theirs, ours = points.review(setting.teacher, setting.student)
    return jaxkd.combine(
        ce=_ce(),
        review=objectives.review(
            [f"student/{tap}" for tap in ours],
            [f"teacher/{tap}" for tap in theirs],
            weight=warm_up(review_weight(setting.teacher, setting.student), setting.steps),
        ),
    )


def warm_up(weight: float, steps: int) -> optax.Schedule:
    """From 0 to the weight over the first twelfth of the training, 20 epochs of 240.

    >>> schedule = warm_up(8.0, 240)
    >>> float(schedule(0)), float(schedule(10)), float(schedule(100))
    (0.0, 4.0, 8.0)
    """
    return optax.linear_schedule(0.0, weight, max(round(steps * WARM_UP), 1))


def dkd_beta(teacher: str, student: str) -> float:
    """DKD's β: larger where the teacher is more confident.

    The authors' code has 8 for teachers of the width 4, ResNet50 and WRN → ShuffleNetV1, 6 for WRN → WRN and VGG13, and
    2 for the narrow ResNets, which others that are not published get here as well.

    >>> dkd_beta("resnet32x4", "resnet8x4"), dkd_beta("wrn_40_2", "wrn_16_2"), dkd_beta("resnet56", "resnet20")
    (8.0, 6.0, 2.0)
    """
    if teacher in ("resnet32x4", "resnet50"):
        return 8.0
    if teacher.startswith("wrn"):
        return 8.0 if student.startswith("shufflenet") else 6.0
    return 6.0 if teacher.startswith("vgg") else 2.0


def review_weight(teacher: str, student: str) -> float:
    """ReviewKD's weight.

    Published: 5 for WRN, resnet32x4 → resnet8x4 and ShuffleNetV1, 8 for ShuffleNetV2, 0.6 for resnet56 → resnet20 and
    1 for resnet110 → resnet32, which all pairs that are not published get here as well.

    >>> review_weight("resnet32x4", "shufflenet_v2"), review_weight("resnet56", "resnet20")
    (8.0, 0.6)
    """
    if student == "shufflenet_v2":
        return 8.0
    if teacher.startswith("wrn") or teacher == "resnet32x4" or student == "shufflenet_v1":
        return 5.0
    return 0.6 if (teacher, student) == ("resnet56", "resnet20") else 1.0
