"""References of `jaxkd.losses.rankings`."""

import numpy as np


def margin_mse(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """The mean over negatives of ((s⁺ - s⁻) - (t⁺ - t⁻))² (Hofstätter et al. 2020)."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    margins = [scores[..., :1] - scores[..., 1:] for scores in (student, teacher)]
    return ((margins[0] - margins[1]) ** 2).mean(-1)
