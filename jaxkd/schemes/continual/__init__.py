"""Schemes for tasks that arrive one after another.

=============================  =======================================================================================
`learning_without_forgetting`  cross-entropy on the new task, distillation of the old classes (LwF)
`lifelong`                     the same sequence with any objective
`retrospection`                an expert is trained on each new task; it and the earlier student teach the student
=============================  =======================================================================================

The objectives are in `jaxkd.objectives.continual`, the batches in `jaxkd.data.Tasks`.
"""

from jaxkd.schemes.continual._lifelong import learning_without_forgetting, lifelong
from jaxkd.schemes.continual._retrospection import retrospection

__all__ = ["learning_without_forgetting", "lifelong", "retrospection"]
