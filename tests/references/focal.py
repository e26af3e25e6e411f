"""References of `jaxkd.losses.dense.focal`."""

import math

import numpy as np

from tests.references.base import log_softmax


def focal_global(
    student: np.ndarray,
    teacher: np.ndarray,
    boxes: np.ndarray,
    *,
    temperature: float = 0.5,
    alpha: float = 1e-3,
    beta: float = 5e-4,
    gamma: float = 1e-3,
    box_where: np.ndarray | None = None,
) -> np.ndarray:
    """Focal and attention terms of FGD (Yang et al. 2022), in loops over images, boxes and positions."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    _, height, width, channels = student.shape
    result = np.zeros(len(student))

    def attention(feature):
        positions = np.abs(feature).mean(-1).reshape(-1) / temperature
        of_channels = np.abs(feature).mean((0, 1)) / temperature
        positions = height * width * np.exp(log_softmax(positions)).reshape(height, width)
        return positions, channels * np.exp(log_softmax(of_channels))

    for image in range(len(student)):
        inside = np.zeros((height, width))
        for number, (left, top, right, bottom) in enumerate(np.asarray(boxes[image], np.float64)):
            if (box_where is not None and not box_where[image, number]) or right <= left or bottom <= top:
                continue
            rows, columns = range(math.floor(top), math.ceil(bottom) + 1), range(math.floor(left), math.ceil(right) + 1)
            for row in range(height):
                for column in range(width):
                    if row in rows and column in columns:
                        inside[row, column] = max(inside[row, column], 1 / (len(rows) * len(columns)))
        outside = (inside == 0) / max((inside == 0).sum(), 1)
        (positions_s, channels_s), (positions_t, channels_t) = attention(student[image]), attention(teacher[image])
        weight = positions_t[..., None] * channels_t * (alpha * inside + beta * outside)[..., None]
        result[image] = (weight * (teacher[image] - student[image]) ** 2).sum()
        result[image] += gamma * (np.abs(positions_t - positions_s).sum() + np.abs(channels_t - channels_s).sum())
    return result
