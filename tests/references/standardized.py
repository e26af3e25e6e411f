"""References of `jaxkd.losses.features.standardized`."""

import numpy as np

from tests.references.base import same_size


def pearson_features(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """½ of the mean of (n(F_s) - n(F_t))², n standardizing each channel over batch and positions (Cao et al. 2022)."""
    student, teacher = same_size(student, teacher)

    def standardized(feature):
        result = np.zeros_like(feature)
        for channel in range(feature.shape[-1]):
            values = feature[..., channel]
            if np.ptp(values) > 0:  # otherwise mean and deviation of a constant are a matter of rounding
                result[..., channel] = (values - values.mean()) / (values.std(ddof=1) + 1e-6)
        return result

    if len(student) == 0:
        return np.zeros(0)
    return ((standardized(student) - standardized(teacher)) ** 2).reshape(len(student), -1).mean(1) / 2
