"""Schemes whose examples are made by student or teacher, such as sequences."""

from jaxkd.schemes.sequences._on_policy import on_policy, teacher_mixed
from jaxkd.schemes.sequences._returns import reverse_kl_to_go

__all__ = ["on_policy", "reverse_kl_to_go", "teacher_mixed"]
