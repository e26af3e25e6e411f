"""References of `jaxkd.losses.logits`."""

import numpy as np

from tests.references.base import kl, log_softmax, log_sum_exp


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """-log p[label]."""
    log_p, labels = log_softmax(logits), np.asarray(labels)
    result = np.zeros(labels.shape)
    for index in np.ndindex(labels.shape):
        inside = 0 <= labels[index] < log_p.shape[-1]
        result[index] = -log_p[index][labels[index]] if inside else np.nan
    return result


def soft_target_kl(student: np.ndarray, teacher: np.ndarray, *, temperature: float = 4.0) -> np.ndarray:
    """T² Σ p_t (log p_t - log p_s), p = softmax(z/T), and 0 log 0 = 0 (Hinton et al. 2015)."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    log_s, log_t = log_softmax(student / temperature), log_softmax(teacher / temperature)
    result = np.zeros(log_s.shape[:-1])
    for index in np.ndindex(log_s.shape):
        p = np.exp(log_t[index])
        if p > 0:
            result[index[:-1]] += temperature**2 * p * (log_t[index] - log_s[index])
    return result


def soft_target_kl_gradient(student: np.ndarray, teacher: np.ndarray, *, temperature: float = 4.0) -> np.ndarray:
    """d/dz_s of `soft_target_kl`: T (p_s - p_t), for logits where a difference quotient has no digits left."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    return temperature * (np.exp(log_softmax(student / temperature)) - np.exp(log_softmax(teacher / temperature)))


def reverse_kl(student: np.ndarray, teacher: np.ndarray, *, temperature: float = 1.0) -> np.ndarray:
    """T² KL(p_s‖p_t), p = softmax(z/T) (MiniLLM, Gu et al. 2024)."""
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    return temperature**2 * kl(log_softmax(student / temperature), log_softmax(teacher / temperature))


def generalized_jsd(
    student: np.ndarray, teacher: np.ndarray, *, beta: float = 0.5, temperature: float = 1.0
) -> np.ndarray:
    """β KL(p_t‖m) + (1-β) KL(p_s‖m), m = β p_t + (1-β) p_s, p = softmax(z/T) (GKD, Agarwal et al. 2024).

    Divided by β, respectively 1-β, it tends to KL(p_t‖p_s) at β = 0 and to KL(p_s‖p_t) at β = 1, which are what these
    two stand for.
    """
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    log_s, log_t = log_softmax(student / temperature), log_softmax(teacher / temperature)
    if beta == 0:
        return kl(log_t, log_s)
    if beta == 1:
        return kl(log_s, log_t)
    log_m = np.logaddexp(np.log(beta) + log_t, np.log(1 - beta) + log_s)
    return beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)


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
    all of z/T. Without other classes both are 0, and with one other class the second is.
    """
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    labels = np.asarray(labels)
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
