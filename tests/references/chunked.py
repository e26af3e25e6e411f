"""References of `jaxkd.losses.chunked`: the dense losses, with all the logits there."""

import numpy as np

from tests.references.base import kl, log_softmax
from tests.references.kl import log_mixture, top_k_kl
from tests.references.sparse import sparse_cross_entropy

Cap = float | tuple[float | None, float | None] | None


def linear_logits(
    hidden: np.ndarray, kernel: np.ndarray, bias: np.ndarray | None, soft_cap: float | None
) -> np.ndarray:
    """z = h W + b, then c tanh(z/c) if there is a cap c."""
    logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
    if bias is not None:
        logits = logits + np.asarray(bias, np.float64)
    return logits if soft_cap is None else soft_cap * np.tanh(logits / soft_cap)


def log_distributions(
    student: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    teacher: tuple[np.ndarray, np.ndarray, np.ndarray | None],
    temperature: float,
    soft_cap: Cap,
) -> tuple[np.ndarray, np.ndarray]:
    """log softmax(z/T) of both."""
    caps = soft_cap if isinstance(soft_cap, tuple | list) else (soft_cap, soft_cap)
    log_s, log_t = (
        log_softmax(linear_logits(*network, cap) / temperature)
        for network, cap in zip((student, teacher), caps, strict=True)
    )
    return log_s, log_t


def linear_soft_target_kl(
    student_hidden: np.ndarray,
    student_kernel: np.ndarray,
    teacher_hidden: np.ndarray,
    teacher_kernel: np.ndarray,
    *,
    student_bias: np.ndarray | None = None,
    teacher_bias: np.ndarray | None = None,
    temperature: float = 1.0,
    soft_cap: Cap = None,
) -> np.ndarray:
    """T² KL(p_t‖p_s) of every token, p = softmax(z/T) of the logits of a linear layer (Hinton et al. 2015)."""
    student = student_hidden, student_kernel, student_bias
    teacher = teacher_hidden, teacher_kernel, teacher_bias
    log_s, log_t = log_distributions(student, teacher, temperature, soft_cap)
    return temperature**2 * kl(log_t, log_s)


def linear_generalized_jsd(
    student_hidden: np.ndarray,
    student_kernel: np.ndarray,
    teacher_hidden: np.ndarray,
    teacher_kernel: np.ndarray,
    *,
    student_bias: np.ndarray | None = None,
    teacher_bias: np.ndarray | None = None,
    temperature: float = 1.0,
    soft_cap: Cap = None,
    beta: float = 0.5,
) -> np.ndarray:
    """β KL(p_t‖m) + (1 - β) KL(p_s‖m), m = β p_t + (1 - β) p_s, of every token; no T² (GKD, Agarwal et al. 2024).

    By convention KL(p_t‖p_s) at β = 0 and KL(p_s‖p_t) at β = 1, to which it is proportional nearby.
    """
    student = student_hidden, student_kernel, student_bias
    teacher = teacher_hidden, teacher_kernel, teacher_bias
    log_s, log_t = log_distributions(student, teacher, temperature, soft_cap)
    if beta == 0:
        return kl(log_t, log_s)
    if beta == 1:
        return kl(log_s, log_t)
    log_m = np.logaddexp(np.log(beta) + log_t, np.log1p(-beta) + log_s)
    return beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)


def linear_reverse_kl(
    student_hidden: np.ndarray,
    student_kernel: np.ndarray,
    teacher_hidden: np.ndarray,
    teacher_kernel: np.ndarray,
    *,
    student_bias: np.ndarray | None = None,
    teacher_bias: np.ndarray | None = None,
    temperature: float = 1.0,
    soft_cap: Cap = None,
) -> np.ndarray:
    """T² KL(p_s‖p_t) of every token (MiniLLM, Gu et al. 2024)."""
    student = student_hidden, student_kernel, student_bias
    teacher = teacher_hidden, teacher_kernel, teacher_bias
    log_s, log_t = log_distributions(student, teacher, temperature, soft_cap)
    return temperature**2 * kl(log_s, log_t)


def linear_skew_kl(
    student_hidden: np.ndarray,
    student_kernel: np.ndarray,
    teacher_hidden: np.ndarray,
    teacher_kernel: np.ndarray,
    *,
    student_bias: np.ndarray | None = None,
    teacher_bias: np.ndarray | None = None,
    temperature: float = 1.0,
    soft_cap: Cap = None,
    alpha: float = 0.1,
) -> np.ndarray:
    """T² KL(p_t ‖ α p_t + (1-α) p_s) of every token (DistiLLM, Ko et al. 2024)."""
    student = student_hidden, student_kernel, student_bias
    teacher = teacher_hidden, teacher_kernel, teacher_bias
    log_s, log_t = log_distributions(student, teacher, temperature, soft_cap)
    return temperature**2 * kl(log_t, log_mixture(alpha, log_t, log_s))


def linear_skew_reverse_kl(
    student_hidden: np.ndarray,
    student_kernel: np.ndarray,
    teacher_hidden: np.ndarray,
    teacher_kernel: np.ndarray,
    *,
    student_bias: np.ndarray | None = None,
    teacher_bias: np.ndarray | None = None,
    temperature: float = 1.0,
    soft_cap: Cap = None,
    alpha: float = 0.1,
) -> np.ndarray:
    """T² KL(p_s ‖ α p_s + (1-α) p_t) of every token (DistiLLM, Ko et al. 2024)."""
    student = student_hidden, student_kernel, student_bias
    teacher = teacher_hidden, teacher_kernel, teacher_bias
    log_s, log_t = log_distributions(student, teacher, temperature, soft_cap)
    return temperature**2 * kl(log_s, log_mixture(alpha, log_s, log_t))


def linear_total_variation(
    student_hidden: np.ndarray,
    student_kernel: np.ndarray,
    teacher_hidden: np.ndarray,
    teacher_kernel: np.ndarray,
    *,
    student_bias: np.ndarray | None = None,
    teacher_bias: np.ndarray | None = None,
    temperature: float = 1.0,
    soft_cap: Cap = None,
) -> np.ndarray:
    """½ Σ |p_t - p_s| of every token."""
    student = student_hidden, student_kernel, student_bias
    teacher = teacher_hidden, teacher_kernel, teacher_bias
    log_s, log_t = log_distributions(student, teacher, temperature, soft_cap)
    return np.abs(np.exp(log_t) - np.exp(log_s)).sum(-1) / 2


def linear_cross_entropy(
    student_hidden: np.ndarray,
    student_kernel: np.ndarray,
    labels: np.ndarray,
    *,
    student_bias: np.ndarray | None = None,
    soft_cap: float | None = None,
) -> np.ndarray:
    """-log softmax(z)[label] of every token."""
    log_s = log_softmax(linear_logits(student_hidden, student_kernel, student_bias, soft_cap))
    return -np.take_along_axis(log_s, np.asarray(labels)[..., None], axis=-1)[..., 0]


def linear_sparse_cross_entropy(
    student_hidden: np.ndarray,
    student_kernel: np.ndarray,
    weights: np.ndarray,
    indices: np.ndarray,
    *,
    student_bias: np.ndarray | None = None,
    soft_cap: float | None = None,
) -> np.ndarray:
    """-Σ w log softmax(z)[index] of every token."""
    logits = linear_logits(student_hidden, student_kernel, student_bias, soft_cap)
    return sparse_cross_entropy(logits, weights, indices)


def linear_top_k_kl(
    student_hidden: np.ndarray,
    student_kernel: np.ndarray,
    log_probs: np.ndarray,
    indices: np.ndarray,
    *,
    student_bias: np.ndarray | None = None,
    temperature: float = 1.0,
    soft_cap: float | None = None,
) -> np.ndarray:
    """T² KL to the teacher's k words and a bucket of all others, of every token."""
    logits = linear_logits(student_hidden, student_kernel, student_bias, soft_cap)
    return top_k_kl(logits, log_probs, indices, temperature=temperature)
