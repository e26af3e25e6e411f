"""What each method minimizes: cross-entropy where there is a label, and its own terms on every image."""

from __future__ import annotations

import jaxkd
from experiments.digits.config import Config
from jaxkd import losses, objectives


def supervised() -> jaxkd.Objective:
    """Cross-entropy of the labelled examples of a batch."""
    return jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", where="batch/labelled")


def objective(method: str, config: Config) -> jaxkd.Objective:
    """The objective of a method.

    Raises:
      ValueError: there is no such method.
    """
    weights = config.weights
    match method:
        case "student":
            return jaxkd.combine(ce=supervised())
        case "kd":
            return jaxkd.combine(
                ce=supervised(),
                kd=jaxkd.term(
                    losses.soft_target_kl,
                    "student/logits",
                    "teacher/logits",
                    weight=weights.kd,
                    temperature=config.temperature,
                ),
            )
        case "hint":
            return jaxkd.combine(
                ce=supervised(), hint=objectives.hint("student/second", "teacher/second", weight=weights.hint)
            )
        case "attention":
            return jaxkd.combine(
                ce=supervised(),
                first=attention("first", weights.attention),
                second=attention("second", weights.attention),
            )
        case "relations":
            embeddings = "student/second", "teacher/second"
            return jaxkd.combine(
                ce=supervised(),
                distance=jaxkd.term(losses.distance_relation, *embeddings, weight=25 * weights.relations),
                angle=jaxkd.term(losses.angle_relation, *embeddings, weight=50 * weights.relations),
            )
    raise ValueError(f"method: there is no {method!r}.")


def attention(layer: str, weight: float) -> jaxkd.Objective:
    """Attention transfer between the same layer of student and teacher."""
    return jaxkd.term(losses.attention_transfer, f"student/{layer}", f"teacher/{layer}", weight=weight)
