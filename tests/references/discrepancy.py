"""References of `jaxkd.losses.relations.discrepancy`."""

import numpy as np

from tests.references.base import rows


def mean_discrepancy(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """‖mean_i s_i - mean_i t_i‖², for every example the same (Xu & Liu 2019)."""
    if len(student) == 0:
        return np.zeros(0)
    difference = rows(student).mean(0) - rows(teacher).mean(0)
    return np.full(len(student), (difference**2).sum())
