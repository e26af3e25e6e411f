"""References of `jaxkd.losses.sequence`: CTC, hypotheses of the teacher, frames."""

import itertools

import numpy as np

from tests.references.base import kl, log_softmax


def ctc(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    frame_where: np.ndarray | None = None,
    label_where: np.ndarray | None = None,
    blank: int = 0,
) -> np.ndarray:
    """-log P(labels), the sum over all alignments, by the forward recursion (Graves et al. 2006).

    Infinite where no alignment fits: too few frames, or a blank among the labels. NaN where a label is no class.
    """
    result = np.zeros(len(logits))
    for example in range(len(logits)):
        frames, sequence = counted(example, logits, labels, frame_where, label_where)
        valid = all(0 <= label < frames.shape[-1] for label in sequence)
        result[example] = -log_probability(log_softmax(frames), sequence, blank) if valid else np.nan
    return result


def counted(
    example: int,
    logits: np.ndarray,
    labels: np.ndarray,
    frame_where: np.ndarray | None,
    label_where: np.ndarray | None,
) -> tuple[np.ndarray, list[int]]:
    """The frames and the labels of one example that count."""
    frames, sequence = np.asarray(logits)[example], np.asarray(labels)[example]
    frames = frames if frame_where is None else frames[np.asarray(frame_where)[example]]
    sequence = sequence if label_where is None else sequence[np.asarray(label_where)[example]]
    return frames, [int(label) for label in sequence]


def log_probability(log_p: np.ndarray, labels: list[int], blank: int) -> float:
    """log P(labels): log α over the labels with blanks between and around them, frame by frame."""
    if blank in labels:
        return -np.inf
    if len(log_p) == 0:
        return -np.inf if labels else 0.0
    extended = [blank]
    for label in labels:
        extended += [label, blank]
    alpha = np.full(len(extended), -np.inf)
    alpha[:2] = [log_p[0, symbol] for symbol in extended[:2]]
    for frame in log_p[1:]:
        before = alpha.copy()
        for position, symbol in enumerate(extended):
            if position >= 1:
                alpha[position] = np.logaddexp(alpha[position], before[position - 1])
            # A blank may be skipped between two labels that differ.
            if position >= 2 and symbol not in (blank, extended[position - 2]):
                alpha[position] = np.logaddexp(alpha[position], before[position - 2])
            alpha[position] += frame[symbol]
    return float(np.logaddexp.reduce(alpha[-2:]))


def ctc_by_enumeration(
    logits: np.ndarray,
    labels: np.ndarray,
    *,
    frame_where: np.ndarray | None = None,
    label_where: np.ndarray | None = None,
    blank: int = 0,
) -> np.ndarray:
    """`ctc` by its definition: the sum over all paths that are the labels without repetitions, then without blanks."""
    result = np.zeros(len(logits))
    for example in range(len(logits)):
        frames, sequence = counted(example, logits, labels, frame_where, label_where)
        log_p = log_softmax(frames)
        total = -np.inf
        for path in itertools.product(range(log_p.shape[-1]), repeat=len(log_p)):
            if [symbol for symbol, _ in itertools.groupby(path) if symbol != blank] == sequence:
                total = np.logaddexp(total, sum(frame[symbol] for frame, symbol in zip(log_p, path, strict=True)))
        result[example] = -total
    return result


def ctc_n_best(
    logits: np.ndarray,
    hypotheses: np.ndarray,
    log_posteriors: np.ndarray,
    *,
    label_where: np.ndarray | None = None,
    frame_where: np.ndarray | None = None,
    blank: int = 0,
) -> np.ndarray:
    """Σ_n w_n CTC(hypothesis n), w = softmax(log posteriors) (Takashima et al. 2019).

    A hypothesis at -inf is absent, whatever it holds; of none the sum is 0.
    """
    weights = np.exp(log_softmax(log_posteriors))
    result = np.zeros(len(logits))
    for example, n in zip(*np.nonzero(weights), strict=True):
        one = slice(example, example + 1)
        loss = ctc(
            logits[one],
            hypotheses[one, n],
            frame_where=None if frame_where is None else frame_where[one],
            label_where=None if label_where is None else label_where[one, n],
            blank=blank,
        )
        result[example] += weights[example, n] * loss[0]
    return result


def n_best_nll(log_probs: np.ndarray, log_posteriors: np.ndarray) -> np.ndarray:
    """-Σ_n w_n log P_s(hypothesis n), w = softmax(log posteriors) (Kim & Rush 2016, who keep the likeliest alone).

    A hypothesis at -inf is absent, whatever the student says of it; of none the sum is 0.
    """
    weights = np.exp(log_softmax(log_posteriors))
    result = np.zeros(len(log_probs))
    for example, n in zip(*np.nonzero(weights), strict=True):
        result[example] -= weights[example, n] * np.float64(log_probs[example, n])
    return result


def frame_kl(
    student: np.ndarray,
    teacher: np.ndarray,
    *,
    temperature: float = 1.0,
    blank: int = 0,
    blank_weight: float = 0.0,
) -> np.ndarray:
    """w T² KL(p_t‖p_s) of every frame; w is `blank_weight` where the teacher's likeliest class is the blank, else 1.

    Frame-level distillation of CTC networks without the frames of blanks (Huang et al. 2018). Of several classes that
    are equally likely the first is meant.
    """
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    result = np.zeros(student.shape[:-1])
    for frame in np.ndindex(result.shape):
        weight = blank_weight if teacher[frame].argmax() == blank else 1.0
        if weight:  # what does not count may differ without bound
            log_s, log_t = (log_softmax(network[frame] / temperature) for network in (student, teacher))
            result[frame] = weight * temperature**2 * kl(log_t, log_s)
    return result
