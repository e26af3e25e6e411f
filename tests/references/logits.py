"""References of `jaxkd.losses.logits`."""

import numpy as np

from tests.references.base import kl, log_softmax, log_sum_exp


def logit_mse(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """½ Σ (z_s - z_t)²; a class at -inf in both is no class of either (Ba & Caruana 2014)."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    both = np.isneginf(student) & np.isneginf(teacher)
    return ((np.where(both, 0, student) - np.where(both, 0, teacher)) ** 2).sum(-1) / 2


def decoupled_kd(
    student: np.ndarray,
    teacher: np.ndarray,
    labels: np.ndarray,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> np.ndarray:
    """α T² KL(b_t‖b_s) + β T² KL(q_t‖q_s) (Zhao et al. 2022).

    b is the pair of p[label] and of what all other classes have together, q the softmax over the other classes alone,
    all of z/T. With one other class the second is 0. Labels that are weights of the classes give the weighted sum of
    the values of each class as the label.
    """
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    labels = np.asarray(labels)
    if labels.dtype.kind == "f":
        hyper = {"alpha": alpha, "beta": beta, "temperature": temperature}
        of_class = [
            decoupled_kd(student, teacher, np.full(labels.shape[:-1], c), **hyper) for c in range(labels.shape[-1])
        ]
        return np.where(labels != 0, labels * np.stack(of_class, -1), 0.0).sum(-1)
    result = np.zeros(labels.shape)
    for index in np.ndindex(labels.shape):
        label, binary, others = labels[index], [], []
        if not 0 <= label < student.shape[-1]:
            result[index] = np.nan
            continue
        for logits in (teacher[index] / temperature, student[index] / temperature):
            rest = np.delete(logits, label)
            binary.append(log_softmax(np.array([logits[label], log_sum_exp(rest)])))
            others.append(log_softmax(rest))
        result[index] = temperature**2 * (alpha * kl(*binary) + beta * kl(*others))
    return result


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """⟨a - mean, b - mean⟩ / (‖a - mean‖ ‖b - mean‖ + 1e-8) of two vectors."""
    a, b = a - a.mean(), b - b.mean()
    return (a * b).sum() / (np.sqrt((a**2).sum()) * np.sqrt((b**2).sum()) + 1e-8)


def dist(
    student: np.ndarray, teacher: np.ndarray, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> np.ndarray:
    """T² [β (1 - ρ of the example's row) + γ mean over classes of (1 - ρ of the column)], p = softmax(z/T) (Huang et
    al. 2022).

    ρ is Pearson's correlation of p_s and p_t. A row or a column that does not vary correlates with nothing: ρ = 0.
    """
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    if len(student) == 0:
        return np.zeros(0)
    s, t = np.exp(log_softmax(student / temperature)), np.exp(log_softmax(teacher / temperature))
    within = np.mean([1 - pearson(s[:, c], t[:, c]) for c in range(s.shape[1])])
    between = np.array([1 - pearson(s[i], t[i]) for i in range(len(s))])
    return temperature**2 * (beta * between + gamma * within)


def standardize_logits(logits: np.ndarray) -> np.ndarray:
    """(z - mean) / (std + 1e-7), std with ddof = 1, over the classes that are finite (Sun et al. 2024)."""
    result = np.array(logits, np.float64)
    for index in np.ndindex(result.shape[:-1]):
        row = result[index]
        finite = np.isfinite(row)
        classes = row[finite]
        if (classes == classes[:1]).all():  # nothing deviates from the mean, and of one class there is no deviation
            row[finite] = 0.0
        else:
            row[finite] = (classes - classes.mean()) / (classes.std(ddof=1) + 1e-7)
    return result
