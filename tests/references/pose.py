"""References of `jaxkd.losses.dense.pose`: heat-maps of joints, and how these relate."""

import numpy as np

from tests.references.transformers import directions


def counted_joints(maps: np.ndarray, example: int, joint_where: np.ndarray | None) -> np.ndarray:
    """[joints, positions] of one example, of the joints that count."""
    joints = np.asarray(maps, np.float64)[example].reshape(-1, maps.shape[-1]).T
    return joints if joint_where is None else joints[np.asarray(joint_where)[example]]


def heatmap_mse(student: np.ndarray, teacher: np.ndarray, *, joint_where: np.ndarray | None = None) -> np.ndarray:
    """The mean over positions and the joints that count of (H_s - H_t)², 0 of no joint (Xu et al. 2020)."""
    result = np.zeros(len(student))
    for example in range(len(student)):
        s, t = (counted_joints(maps, example, joint_where) for maps in (student, teacher))
        if s.size:
            result[example] = np.mean((s - t) ** 2)
    return result


def joint_structure(student: np.ndarray, teacher: np.ndarray, *, joint_where: np.ndarray | None = None) -> np.ndarray:
    """The mean over the pairs (i, j) of joints that count of (S_s - S_t)², pair-wise after Xu et al. 2020.

    S[i, j] is the cosine between the heat-maps of joints i and j; of a map of zeros it is 0, also with itself.
    """
    result = np.zeros(len(student))
    for example in range(len(student)):
        s, t = (directions(counted_joints(maps, example, joint_where)) for maps in (student, teacher))
        if s.size:
            result[example] = np.mean((s @ s.T - t @ t.T) ** 2)
    return result
