"""Schemes in which a network is its own teacher, within one step.

Self-distillation over time is `jaxkd.objectives.progressive_self_kd` (PS-KD), `jaxkd.teachers.ema` and
`jaxkd.schemes.born_again`.
"""

from jaxkd.schemes.self_distillation._be_your_own_teacher import byot, exit_head
from jaxkd.schemes.self_distillation._class_wise import class_wise
from jaxkd.schemes.self_distillation._distorted_views import distorted_views

__all__ = ["byot", "class_wise", "exit_head", "distorted_views"]
