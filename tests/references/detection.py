"""References of `jaxkd.losses.dense.detection`: classes, boxes, and features near objects."""

import numpy as np

from tests.references.base import log_softmax


def class_weighted_cross_entropy(
    student: np.ndarray,
    teacher: np.ndarray,
    *,
    background_weight: float = 1.5,
    background: int = 0,
    temperature: float = 1.0,
) -> np.ndarray:
    """-Σ_c w_c p_t log p_s, p = softmax(z/T), w = `background_weight` of the background, else 1 (Chen et al. 2017).

    0 log 0 = 0.
    """
    log_s = log_softmax(np.asarray(student, np.float64) / temperature)
    log_t = log_softmax(np.asarray(teacher, np.float64) / temperature)
    weights = np.ones(log_s.shape[-1])
    weights[background] = background_weight
    result = np.zeros(log_s.shape[:-1])
    for index in np.ndindex(log_s.shape):
        p = np.exp(log_t[index])
        if p > 0 and weights[index[-1]]:
            result[index[:-1]] -= weights[index[-1]] * p * log_s[index]
    return result


def bounded_regression(
    student: np.ndarray, teacher: np.ndarray, target: np.ndarray, *, margin: float = 0.0
) -> np.ndarray:
    """‖R_s - y‖² where ‖R_s - y‖² + m > ‖R_t - y‖², else 0: as good as the teacher is enough (Chen et al. 2017)."""
    student, teacher, target = (np.asarray(array, np.float64) for array in (student, teacher, target))
    of_student, of_teacher = ((student - target) ** 2).sum(-1), ((teacher - target) ** 2).sum(-1)
    return np.where(of_student + margin > of_teacher, of_student, 0.0)


def intersection_over_union(one: np.ndarray, other: np.ndarray) -> float:
    """Of two boxes (x0, y0, x1, y1); 0 of boxes without an area."""

    def area(x0: float, y0: float, x1: float, y1: float) -> float:
        return max(x1 - x0, 0.0) * max(y1 - y0, 0.0)

    a, b = ([float(side) for side in box] for box in (one, other))
    common = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - common
    return common / union if union > 0 else 0.0


def imitation_mask(
    anchors: np.ndarray, boxes: np.ndarray, *, threshold: float = 0.5, box_where: np.ndarray | None = None
) -> np.ndarray:
    """Where an anchor's IoU with an object is more than ψ times the object's largest (FGFI, Wang et al. 2019).

    Anchors [height, width, k, 4] and boxes [batch, n, 4] to a mask [batch, height, width], the union over the boxes. A
    box that no anchor meets marks nothing.
    """
    result = np.zeros((len(boxes), *anchors.shape[:2]), bool)
    for example, n in np.ndindex(boxes.shape[:2]):
        if box_where is not None and not box_where[example, n]:
            continue
        overlap = np.zeros(anchors.shape[:3])
        for place in np.ndindex(overlap.shape):
            overlap[place] = intersection_over_union(anchors[place], boxes[example, n])
        largest = overlap.max(initial=0)
        if largest > 0:
            result[example] |= (overlap > threshold * largest).any(-1)
    return result


def feature_imitation(student: np.ndarray, teacher: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """1/(2 N) Σ (F_s - F_t)² over the N positions of an example's mask and all channels (FGFI, Wang et al. 2019).

    Without a position it is 0.
    """
    result = np.zeros(len(student))
    for example, positions in enumerate(np.asarray(mask, bool)):
        if positions.any():
            s, t = np.asarray(student, np.float64)[example], np.asarray(teacher, np.float64)[example]
            result[example] = ((s[positions] - t[positions]) ** 2).sum() / (2 * positions.sum())
    return result
