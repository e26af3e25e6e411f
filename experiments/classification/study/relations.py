"""Rows that compare relations between the examples of a batch."""

import functools
from collections.abc import Callable
from typing import Any

import jaxkd
from experiments.classification.study.features import DEFAULT, KIT, paths
from experiments.classification.study.networks import STAGES
from experiments.classification.study.response import Setting, beside
from experiments.classification.study.table import Row, Rows
from jaxkd import losses, objectives
from jaxkd.types import Objective

LAST = STAGES[-1]
EMBEDDING, NEGATIVES = 32, 256


def _last(loss: Callable[..., Any], **options: Any) -> Callable[[Setting, Any], Objective]:
    return lambda of, value: jaxkd.term(loss, *paths(LAST), weight=value, **options)


def _embedded(loss: Callable[..., Any], **options: Any) -> Callable[[Setting, Any], Objective]:
    def make(of: Setting, value: Any) -> Objective:
        return objectives.on_embeddings(loss, *paths(LAST), embedding_size=EMBEDDING, weight=value, **options)

    return make


def _graph(of: Setting, value: Any) -> Objective:
    ends = [(f"{side}/{STAGES[0]}", f"{side}/{STAGES[1]}") for side in ("student", "teacher")]
    return objectives.attention_graph(ends[0], ends[1], heads=4, hidden_size=16, weight=value)


def _bank(of: Setting, value: Any) -> Objective:
    classes = of.taught.outputs["logits"].argmax(-1)
    return objectives.crd(*paths(LAST), classes, negatives=NEGATIVES, embedding_size=EMBEDDING, weight=value)


def _queue(of: Setting, value: Any) -> Objective:
    options: Any = {"queue_size": 512, "embedding_size": EMBEDDING, "label_path": "batch/guess"}
    return objectives.crd_queue(*paths(LAST), weight=value, **options)


def _in_batch(of: Setting, value: Any) -> Objective:
    return objectives.crd_in_batch(*paths(LAST), embedding_size=EMBEDDING, label_path="batch/guess", weight=value)


_row = functools.partial(Row, group="relations", taps=(LAST,))
_crd = "contrastive representation distillation"
ROWS: Rows = {
    "rkd_distance": _row("RKD-D", beside(_last(losses.distance_relation)), 25.0, "weight", covers="distances between"),
    "rkd_angle": _row("RKD-A", beside(_last(losses.angle_relation)), 50.0, "weight", covers="angles between examples"),
    "sp": _row(
        "SP",
        beside(_last(losses.similarity_preserving)),
        KIT["sp"].weights["sp"],
        "weight",
        covers="similarity-preserving distillation",
    ),
    "pkt": _row(
        "PKT", beside(_last(losses.probabilistic_transfer)), KIT["pkt"].weights["pkt"], "weight", covers="probabilistic"
    ),
    "cc": _row(
        "CC, differences",
        beside(_embedded(losses.consecutive_correlation)),
        KIT["cc"].weights["cc"],
        "weight",
        covers="correlation congruence",
    ),
    "cc_kernel": _row(
        "CC, kernel",
        beside(_embedded(losses.correlation_congruence, normalize=True)),
        1.0,
        DEFAULT,
        covers="correlation",
    ),
    "darkrank_soft": _row("DarkRank, soft", beside(_last(losses.darkrank_soft)), 1.0, DEFAULT, covers="ranking"),
    "darkrank_hard": _row("DarkRank, hard", beside(_last(losses.darkrank_hard)), 1.0, DEFAULT, covers="ranking"),
    "mhgd": _row("MHGD", beside(_graph), 1.0, DEFAULT, covers="multi-head graph distillation")._replace(
        taps=STAGES[:2]
    ),
    "crd": _row("CRD, bank", beside(_bank), KIT["crd"].weights["crd"], "weight; 256 negatives", covers=_crd),
    "crd_queue": _row("CRD, queue", beside(_queue), KIT["crd"].weights["crd"], "weight; 512 in the queue", covers=_crd),
    "crd_in_batch": _row("CRD, in batch", beside(_in_batch), KIT["crd"].weights["crd"], "weight", covers=_crd),
    "info_nce": _row(
        "InfoNCE", beside(_embedded(losses.info_nce, normalize=True)), 0.8, "weight; that of CRD", covers=_crd
    ),
}
