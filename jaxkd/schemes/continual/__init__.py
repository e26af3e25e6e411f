"""Schemes for tasks that arrive one after another.

The objectives are in `jaxkd.objectives.continual`, the batches in `jaxkd.data.Tasks`.
"""

from jaxkd.schemes.continual._lifelong import learning_without_forgetting, lifelong
from jaxkd.schemes.continual._retrospection import retrospection

__all__ = ["learning_without_forgetting", "lifelong", "retrospection"]
