"""Rows that compare features of the two networks."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

import jaxkd
from experiments.classification.study.networks import GRADIENT, STAGES
from experiments.classification.study.response import DEFAULT, KIT, Setting, beside, labels
from experiments.classification.study.table import Part, Row, Rows
from jaxkd import losses, objectives, wrappers
from jaxkd.objectives import layers
from jaxkd.types import Context, Objective, ObjectiveVars

PREACTS = tuple(f"{stage}_preact" for stage in STAGES)
FIRST = 0.125  # share of the training that an initialization takes
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)
FIRST_RATE = "multiple of the common learning rate in an initialization of 1/8 of the steps"


def paths(tap: str) -> tuple[str, str]:
    return f"student/{tap}", f"teacher/{tap}"


def each(make: Callable[..., Objective], taps: Sequence[str] = STAGES) -> Callable[[Setting, Any], Objective]:
    """Returns a term of one weight for each tap."""
    return lambda of, value: jaxkd.combine(**{tap: make(*paths(tap), weight=value) for tap in taps})


def deeper(make: Callable[[Setting, str], Callable[..., Objective]]) -> Callable[[Setting, Any], Objective]:
    """Returns a term for each stage before its ReLU; weights double with depth, up to the whole one."""

    def objective(of: Setting, value: Any) -> Objective:
        made = {}
        for i, stage in enumerate(STAGES):
            share = 2.0 ** (i + 1 - len(STAGES))
            made[stage] = make(of, stage)(*paths(f"{stage}_preact"), weight=value * share)
        return jaxkd.combine(**made)

    return objective


def first(make: Callable[[Setting, Any], Objective]) -> Callable[[Setting, Any], list[Part]]:
    """Returns the stages of a method that initializes the student, and then trains it on the labels."""
    return lambda of, value: [Part(make(of, 1.0), rate=value, share=FIRST), Part(jaxkd.combine(ce=labels()))]


def projected(loss: Objective, taps: Sequence[str] = STAGES) -> Objective:
    """Returns an objective that sees the student's maps behind learned linear maps to the teacher's channels."""

    def init(key: Any, context: Context) -> ObjectiveVars:
        made = {}
        for i, tap in enumerate(taps):
            sizes = [objectives.lookup(context, path).shape[-1] for path in paths(tap)]
            made[tap] = layers.dense_init(jax.random.fold_in(key, i), *sizes)
        return ObjectiveVars(made)

    def change(params: Any, state: Any, context: Context, key: Any) -> tuple[Context, Any]:
        changed = {
            f"student/{tap}": layers.dense(params[tap], objectives.lookup(context, f"student/{tap}")) for tap in taps
        }
        return objectives.replace(context, changed), state

    return objectives.with_projection(init, change, loss)


def _flow(of: Setting, value: Any) -> Objective:
    made = {}
    for one, other in ((STAGES[0], STAGES[1]), (STAGES[1], STAGES[2])):
        maps = [(f"{side}/{one}", f"{side}/{other}") for side in ("student", "teacher")]
        made[one] = jaxkd.term(losses.solution_flow, *maps, weight=value)
    return projected(jaxkd.combine(**made))


def _singular(of: Setting, value: Any) -> Objective:
    maps = [tuple(f"{side}/{stage}" for stage in STAGES) for side in ("student", "teacher")]
    return projected(jaxkd.term(losses.singular_vectors, *maps, weight=value))


def _weighted(of: Setting, value: Any) -> Objective:
    made = {}
    for stage in STAGES:
        loss = functools.partial(_channel_weighted, weights=of.taught.importance[stage])
        made[stage] = jaxkd.term(loss, *paths(stage), weight=value)
    return projected(jaxkd.combine(**made))


def _channel_weighted(student: Any, teacher: Any, *, weights: Any, where: Any = None) -> Any:
    return losses.channel_weighted_mse(student, teacher, weights, where=where)


def _channels(of: Setting, value: Any) -> Objective:
    return projected(each(functools.partial(jaxkd.term, losses.channel_kl, temperature=4.0))(of, value))


def _factors(of: Setting, value: Any) -> list[Part]:
    _, teacher = paths(STAGES[-1])
    paraphraser = jaxkd.combine(ft=jaxkd.combine(paraphraser=objectives.paraphraser(teacher)))
    translator = objectives.factor_translator(*paths(STAGES[-1]), batch_norm=True, weight=value)
    return [Part(paraphraser, share=FIRST, student=False), Part(jaxkd.combine(ce=labels(), ft=translator))]


def _regressed(of: Setting, value: Any) -> list[Part]:
    """Returns hints of one layer after the other, and then the labels."""
    hints = [jaxkd.combine(**{stage: objectives.hint(*paths(stage))}) for stage in STAGES]
    shares = FIRST / len(STAGES)
    return [*(Part(hint, rate=value, share=shares) for hint in hints), Part(jaxkd.combine(ce=labels()))]


def _review(of: Setting, value: Any) -> Objective:
    students, teachers = (
        [f"{side}/{tap}" for tap in taps] for side, taps in (("student", STAGES), ("teacher", PREACTS))
    )
    return objectives.review(students, teachers, weight=lambda step: value * (step / (of.steps / 12)).clip(0.0, 1.0))


def _jacobian(of: Setting, value: Any) -> Objective:
    return jaxkd.term(losses.jacobian_matching, *paths(GRADIENT), weight=value)


def _foundation(of: Setting, value: Any) -> Objective:
    return objectives.foundation_features(*paths(STAGES[-1]), cosine=0.9 * value, smooth_l1=0.1 * value)


def _loss(loss: Callable[..., Any]) -> Callable[..., Objective]:
    return functools.partial(jaxkd.term, loss)


def _published(name: str) -> float:
    """Returns the weight of the benchmark's table."""
    (weight,) = KIT[name].weights.values()
    return weight


_boundaries = deeper(lambda of, stage: objectives.boundary_connector)
_overhaul = deeper(lambda of, stage: functools.partial(objectives.overhaul_connector, margin=of.taught.margin(stage)))
_hint = each(objectives.hint, STAGES[1:2])
_row = functools.partial(Row, group="features")
_rates: Any = {"grid": RATES}
ROWS: Rows = {
    "hint": _row("hint", beside(_hint), _published("fitnet"), "weight", (STAGES[1],), covers="hints"),
    "hint_first": _row("hint, then labels", first(_hint), 1.0, FIRST_RATE, (STAGES[1],), covers="hints", **_rates),
    "at": _row(
        "AT",
        beside(each(_loss(losses.attention_transfer))),
        _published("at"),
        "weight",
        STAGES,
        covers="attention transfer",
    ),
    "ft": _row("FT", _factors, _published("ft"), "weight", STAGES[-1:], covers="factor transfer", convolves=True),
    "nst": _row(
        "NST",
        beside(each(_loss(losses.neuron_selectivity))),
        _published("nst"),
        "weight",
        STAGES,
        covers="neuron selectivity transfer",
    ),
    "ab": _row(
        "AB, beside labels", beside(_boundaries), _published("ab"), "weight", PREACTS, covers="activation boundaries"
    ),
    "ab_first": _row(
        "AB, then labels", first(_boundaries), 1.0, FIRST_RATE, PREACTS, covers="activation boundaries", **_rates
    ),
    "ofd": _row(
        "OFD", beside(_overhaul), _published("ofd"), "weight", PREACTS, covers="overhaul of feature distillation"
    ),
    "vid": _row("VID", beside(each(objectives.variational)), _published("vid"), "weight", STAGES, covers="variational"),
    "fsp": _row("FSP, beside labels", beside(_flow), 1.0, DEFAULT, STAGES, covers="flow of the solution procedure"),
    "fsp_first": _row(
        "FSP, then labels", first(_flow), 1.0, FIRST_RATE, STAGES, covers="flow of the solution procedure", **_rates
    ),
    "svd": _row("KD-SVD", beside(_singular), 1.0, DEFAULT, STAGES, covers="singular vectors of features"),
    "review": _row(
        "ReviewKD",
        beside(_review),
        1.0,
        "weight, 0.6 to 8 published",
        PREACTS,
        covers="knowledge review",
        convolves=True,
    ),
    "delta": _row(
        "DELTA", beside(_weighted), 0.01, "weight; 0.01 here", STAGES, covers="channel-weighted feature regularization"
    ),
    "pre_regression": _row(
        "pre-regression", _regressed, 1.0, FIRST_RATE, STAGES, covers="knowledge pre-regression", **_rates
    ),
    "jacobian": _row(
        "Jacobian matching",
        beside(_jacobian),
        1.0,
        DEFAULT,
        (GRADIENT,),
        covers="Jacobian matching",
        wrap=functools.partial(wrappers.with_input_gradient, class_path="teacher/logits"),
    ),
    "cwd": _row(
        "CWD",
        beside(_channels),
        3.0,
        "weight, T = 4; the authors' for logits",
        STAGES,
        covers="channel-wise distillation",
    ),
    "mgd": _row(
        "MGD",
        beside(each(objectives.masked_generation, STAGES[-1:])),
        7e-5,
        "weight",
        STAGES[-1:],
        covers="masked generative",
        convolves=True,
    ),
    "foundation": _row(
        "AM-RADIO features", beside(_foundation), 1.0, "weight", STAGES[-1:], covers="features of several"
    ),
}
