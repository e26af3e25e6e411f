"""References of `jaxkd.losses.gradients`: what a network does when its input changes."""

import numpy as np

from tests.references.transformers import directions


def jacobian_matching(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """‖n(J_s) - n(J_t)‖² of the gradients of each example's input, n(x) = x/‖x‖, n(0) = 0 (Srinivas & Fleuret 2018)."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    result = [
        ((directions(s.ravel()) - directions(t.ravel())) ** 2).sum() for s, t in zip(student, teacher, strict=True)
    ]
    return np.array(result, np.float64)


def reverse_gradient(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Its input; only the gradient is another, -scale times what comes (Ganin & Lempitsky 2015; CTKD, Li 2023)."""
    return np.asarray(x, np.float64)
