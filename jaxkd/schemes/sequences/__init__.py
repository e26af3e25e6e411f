"""Schemes whose examples are made by student or teacher, such as sequences."""

from jaxkd.schemes.sequences._interactive import interactive
from jaxkd.schemes.sequences._on_policy import on_policy, teacher_mixed
from jaxkd.schemes.sequences._replay import replay
from jaxkd.schemes.sequences._returns import linear_reverse_kl_to_go, reverse_kl_to_go
from jaxkd.schemes.sequences._sequence_level import sequence_level

__all__ = [
    "interactive",
    "linear_reverse_kl_to_go",
    "on_policy",
    "replay",
    "reverse_kl_to_go",
    "sequence_level",
    "teacher_mixed",
]
