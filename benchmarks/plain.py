"""Plain formulas of the losses in jax.numpy, without masks, blocks or numerical guards.

`benchmarks.losses` compares the library with these. Each function takes the arrays of the loss and returns the mean
over the examples.
"""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.nn import log_softmax, softmax


def normalized(x: Array, axis: int = -1) -> Array:
    return x / jnp.linalg.norm(x, axis=axis, keepdims=True)


def kl(log_p: Array, log_q: Array) -> Array:
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def mean_square(student: Array, teacher: Array) -> Array:
    return jnp.mean((student - teacher) ** 2)


# --- logits, targets, divergences -------------------------------------------------------------------------------------


def cross_entropy(logits: Array, labels: Array) -> Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def soft_target_kl(s: Array, t: Array, temperature: float = 4.0) -> Array:
    return temperature**2 * kl(log_softmax(t / temperature), log_softmax(s / temperature)).mean()


def reverse_kl(s: Array, t: Array) -> Array:
    return kl(log_softmax(s), log_softmax(t)).mean()


def generalized_jsd(s: Array, t: Array, beta: float = 0.5) -> Array:
    log_s, log_t = log_softmax(s), log_softmax(t)
    log_m = jnp.logaddexp(log_t + math.log(beta), log_s + math.log(1 - beta))
    return (beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)).mean()


def decoupled_kd(s: Array, t: Array, labels: Array, alpha: float = 1.0, beta: float = 8.0) -> Array:
    temperature, target = 4.0, jax.nn.one_hot(labels, s.shape[-1], dtype=bool)

    def parts(z: Array) -> tuple[Array, Array]:
        p = jnp.sum(jnp.where(target, softmax(z / temperature), 0), axis=-1)
        return jnp.log(jnp.stack([p, 1 - p], axis=-1)), log_softmax(jnp.where(target, -1e9, z / temperature))

    (binary_s, rest_s), (binary_t, rest_t) = parts(s), parts(t)
    return temperature**2 * (alpha * kl(binary_t, binary_s) + beta * kl(rest_t, rest_s)).mean()


def dist(s: Array, t: Array) -> Array:
    def correlation(a: Array, b: Array) -> Array:
        a, b = (x - x.mean(-1, keepdims=True) for x in (a, b))
        return jnp.sum(a * b, -1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1) + 1e-8)

    p, q = softmax(s), softmax(t)
    return (1 - correlation(p, q)).mean() + (1 - correlation(p.T, q.T)).mean()


def logit_mse(s: Array, t: Array) -> Array:
    return 0.5 * jnp.sum((s - t) ** 2, axis=-1).mean()


def soft_cross_entropy(logits: Array, targets: Array) -> Array:
    return -jnp.sum(targets * log_softmax(logits), axis=-1).mean()


def label_smoothing(logits: Array, labels: Array) -> Array:
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.1)
    return optax.softmax_cross_entropy(logits, targets).mean()


def virtual_teacher_kl(logits: Array, labels: Array) -> Array:
    classes, temperature = logits.shape[-1], 20.0
    p = jnp.where(jax.nn.one_hot(labels, classes, dtype=bool), 0.99, 0.01 / (classes - 1))
    return temperature**2 * kl(log_softmax(jnp.log(p) / temperature), log_softmax(logits / temperature)).mean()


def skew_kl(s: Array, t: Array, alpha: float = 0.1) -> Array:
    log_s, log_t = log_softmax(s), log_softmax(t)
    return kl(log_t, jnp.logaddexp(log_t + math.log(alpha), log_s + math.log(1 - alpha))).mean()


def skew_reverse_kl(s: Array, t: Array) -> Array:
    return skew_kl(t, s)


def top_k_kl(s: Array, log_probs: Array, indices: Array) -> Array:
    picked = jnp.take_along_axis(log_softmax(s), indices, axis=-1)

    def buckets(x: Array) -> Array:
        return jnp.concatenate([x, jnp.log(1 - jnp.sum(jnp.exp(x), -1, keepdims=True))], axis=-1)

    return kl(buckets(log_probs), buckets(picked)).mean()


def sparse_cross_entropy(s: Array, weights: Array, indices: Array) -> Array:
    return -jnp.sum(weights * jnp.take_along_axis(log_softmax(s), indices, axis=-1), axis=-1).mean()


# --- features ---------------------------------------------------------------------------------------------------------


def activation_boundary(s: Array, t: Array) -> Array:
    wrong = jnp.where((s > -1) & (t <= 0), (s + 1) ** 2, 0) + jnp.where((s <= 1) & (t > 0), (s - 1) ** 2, 0)
    return jnp.sum(wrong, axis=(1, 2, 3)).mean()


def overhaul(s: Array, t: Array, margin: Array) -> Array:
    t = jnp.maximum(t, margin[None, None, None, :])
    return jnp.sum(jnp.where((s > t) | (t > 0), (s - t) ** 2, 0), axis=(1, 2, 3)).mean()


def hierarchical_context(s: Array, t: Array) -> Array:
    total, weights, weight = jnp.mean((s - t) ** 2), 1.0, 1.0
    for level in (4, 2, 1):
        size, weight = s.shape[1] // level, weight / 2

        def pooled(x: Array, size: int = size, level: int = level) -> Array:
            return x.reshape(-1, level, size, level, size, x.shape[-1]).mean((2, 4))

        total, weights = total + weight * jnp.mean((pooled(s) - pooled(t)) ** 2), weights + weight
    return total / weights


def gaussian_nll(mean: Array, target: Array, variance: Array) -> Array:
    variance = variance[None, None, None, :]
    return 0.5 * jnp.mean((mean - target) ** 2 / variance + jnp.log(variance))


def channel_weighted_mse(s: Array, t: Array, weights: Array) -> Array:
    return jnp.sum(weights[None, None, None, :] * (s - t) ** 2, axis=(1, 2, 3)).mean()


def attention_transfer(s: Array, t: Array) -> Array:
    a, b = (normalized(jnp.mean(x**2, axis=-1).reshape(len(x), -1)) for x in (s, t))
    return jnp.mean((a - b) ** 2)


def factor_transfer(s: Array, t: Array) -> Array:
    a, b = (normalized(jnp.mean(x**2, axis=-1).reshape(len(x), -1)) for x in (s, t))
    return jnp.mean(jnp.abs(a - b))


def neuron_selectivity(s: Array, t: Array) -> Array:
    a, b = (normalized(x.reshape(len(x), -1, x.shape[-1]), axis=1) for x in (s, t))

    def similarity(a: Array, b: Array) -> Array:
        return jnp.mean(jnp.einsum("npc,npd->ncd", a, b) ** 2)

    return similarity(a, a) + similarity(b, b) - 2 * similarity(a, b)


def channel_kl(s: Array, t: Array) -> Array:
    a, b = (log_softmax(x.reshape(len(x), -1, x.shape[-1]).swapaxes(1, 2) / 4.0) for x in (s, t))
    return 16.0 * kl(b, a).mean()


def solution_flow(s: Array, s_next: Array, t: Array, t_next: Array) -> Array:
    positions = s.shape[1] * s.shape[2]
    a, b = (jnp.einsum("nhwc,nhwd->ncd", x, y) / positions for x, y in ((s, s_next), (t, t_next)))
    return jnp.mean((a - b) ** 2)


def singular_vectors(s: Array, s_next: Array, t: Array, t_next: Array) -> Array:
    def first(x: Array) -> Array:
        return jnp.linalg.svd(x.reshape(len(x), -1, x.shape[-1]), full_matrices=False)[2][:, 0, :]

    def relation(a: Array, b: Array) -> Array:
        return jnp.exp(-((b[:, :, None] - a[:, None, :]) ** 2) / 8)

    t_first, t_second = (first(x) for x in (t, t_next))
    t_first, t_second = (
        v * jnp.sign(jnp.take_along_axis(v, jnp.argmax(jnp.abs(v), -1, keepdims=True), -1)) for v in (t_first, t_second)
    )
    s_first, s_second = (
        v * jnp.sign(jnp.sum(v * u, -1, keepdims=True)) for v, u in ((first(s), t_first), (first(s_next), t_second))
    )
    return jnp.sum((relation(s_first, s_second) - relation(t_first, t_second)) ** 2, axis=(1, 2)).mean()


# --- relations, contrastive -------------------------------------------------------------------------------------------


def distances(x: Array) -> Array:
    squares = jnp.sum((x[:, None] - x[None]) ** 2, axis=-1)
    return jnp.where(squares > 0, jnp.sqrt(jnp.where(squares > 0, squares, 1)), 0)


def distance_relation(s: Array, t: Array) -> Array:
    a, b = (d / (d.sum() / (d > 0).sum()) for d in map(distances, (s, t)))
    return optax.huber_loss(a, b).mean()


def angle_relation(s: Array, t: Array) -> Array:
    def angles(x: Array) -> Array:
        difference = x[:, None] - x[None]
        e = difference / jnp.maximum(distances(x), 1e-12)[..., None]
        return jnp.einsum("ijd,kjd->jik", e, e)

    return optax.huber_loss(angles(s), angles(t)).mean()


def similarity_preserving(s: Array, t: Array) -> Array:
    a, b = (normalized(x @ x.T) for x in (s, t))
    return jnp.mean((a - b) ** 2)


def correlation_congruence(s: Array, t: Array, gamma: float = 0.4) -> Array:
    def kernel(x: Array) -> Array:
        gram = normalized(x) @ normalized(x).T
        return sum((2 * gamma) ** p / math.factorial(p) * math.exp(-2 * gamma) * gram**p for p in range(3))  # type: ignore[return-value]

    return jnp.mean((kernel(s) - kernel(t)) ** 2)


def consecutive_correlation(s: Array, t: Array) -> Array:
    delta = jnp.abs(s - t)
    return jnp.sum(delta[1:] * delta[:-1], axis=-1).mean()


def probabilistic_transfer(s: Array, t: Array) -> Array:
    def probability(x: Array) -> Array:
        x = x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-7)
        similarity = (x @ x.T + 1) / 2
        return similarity / similarity.sum(axis=1, keepdims=True)

    p_s, p_t = probability(s), probability(t)
    return jnp.mean(p_t * jnp.log((p_t + 1e-7) / (p_s + 1e-7)))


def darkrank_scores(s: Array, t: Array) -> tuple[Array, Array]:
    d_s, d_t = distances(s), distances(t)
    order = jnp.argsort(d_t + jnp.diag(jnp.full(len(t), jnp.inf)), axis=1)[:, :4]
    score_s, score_t = (jnp.take_along_axis(-3.0 * d**3, order, axis=1) for d in (d_s, d_t))
    return score_s, score_t


def plackett_luce(scores: Array) -> Array:
    tails = [jax.nn.logsumexp(scores[..., k:], axis=-1) for k in range(scores.shape[-1])]
    return jnp.sum(scores, axis=-1) - sum(tails)


def darkrank_hard(s: Array, t: Array) -> Array:
    return -plackett_luce(darkrank_scores(s, t)[0]).mean()


def darkrank_soft(s: Array, t: Array) -> Array:
    orders = jnp.array(list(itertools.permutations(range(4))))
    log_s, log_t = (plackett_luce(scores[:, orders]) for scores in darkrank_scores(s, t))
    return kl(log_t, log_s).mean()


def contrastive_nce(scores: Array, num_data: int) -> Array:
    count = scores.shape[1] - 1
    noise, positive, negatives = count / num_data, scores[:, 0], scores[:, 1:]
    negative = jnp.log(noise / (negatives + noise + 1e-7)).sum(1)
    return -(jnp.log(positive / (positive + noise + 1e-7)) + negative).mean()


def info_nce(s: Array, t: Array) -> Array:
    logits = normalized(s) @ normalized(t).T / 0.07
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.arange(len(s))).mean()


# --- transformers, sequences, gradients -------------------------------------------------------------------------------


def attention_kl(s: Array, t: Array) -> Array:
    return kl(log_softmax(t), log_softmax(s)).mean()


def value_relation_kl(s: Array, t: Array) -> Array:
    a, b = (
        jnp.einsum("nqhd,nkhd->nhqk", v, v) / v.shape[-1] ** 0.5
        for v in (x.reshape(*x.shape[:2], 8, -1) for x in (s, t))
    )
    return attention_kl(a, b)


def hidden_cosine(s: Array, t: Array) -> Array:
    return (1 - jnp.sum(normalized(s) * normalized(t), axis=-1)).mean()


def ctc(logits: Array, labels: Array) -> Array:
    return optax.ctc_loss(logits, jnp.zeros(logits.shape[:2]), labels, jnp.zeros(labels.shape)).mean()


def ctc_n_best(logits: Array, hypotheses: Array, log_posteriors: Array) -> Array:
    frames = jnp.zeros(logits.shape[:2])
    each = jax.vmap(lambda h: optax.ctc_loss(logits, frames, h, jnp.zeros(h.shape)), in_axes=1, out_axes=1)(hypotheses)
    return jnp.sum(softmax(log_posteriors) * each, axis=1).mean()


def n_best_nll(log_probs: Array, log_posteriors: Array) -> Array:
    return -jnp.sum(softmax(log_posteriors) * log_probs, axis=1).mean()


def frame_kl(s: Array, t: Array) -> Array:
    return (jnp.where(jnp.argmax(t, -1) == 0, 0, 1) * kl(log_softmax(t), log_softmax(s))).mean()


def jacobian_matching(s: Array, t: Array) -> Array:
    a, b = (normalized(x.reshape(len(x), -1)) for x in (s, t))
    return jnp.sum((a - b) ** 2, axis=-1).mean()


def linear(loss: str, student: Array, kernel: Array, teacher: Array, teacher_kernel: Array) -> Array:
    s, t = student @ kernel, jax.lax.stop_gradient(teacher @ teacher_kernel)
    return soft_target_kl(s, t, 1.0) if loss == "kl" else generalized_jsd(s, t)


linear_soft_target_kl = functools.partial(linear, "kl")
linear_generalized_jsd = functools.partial(linear, "jsd")


# --- dense ------------------------------------------------------------------------------------------------------------


def class_weighted_cross_entropy(s: Array, t: Array) -> Array:
    weights = jnp.where(jnp.arange(s.shape[-1]) == 0, 1.5, 1.0)
    return -jnp.sum(weights * softmax(t) * log_softmax(s), axis=-1).mean()


def sigmoid_focal(logits: Array, labels: Array, alpha: float = 0.25, gamma: float = 2.0) -> Array:
    p = jax.nn.sigmoid(logits)
    own, weight = jnp.where(labels == 1, p, 1 - p), jnp.where(labels == 1, alpha, 1 - alpha)
    return -jnp.sum(weight * (1 - own) ** gamma * jnp.log(own), axis=-1).mean()


def smooth_l1(s: Array, target: Array) -> Array:
    return jnp.sum(optax.huber_loss(s, target), axis=-1).mean()


def bounded_regression(s: Array, t: Array, target: Array) -> Array:
    ours, theirs = (jnp.sum((x - target) ** 2, axis=-1) for x in (s, t))
    return jnp.where(ours > theirs, ours, 0).mean()


def feature_imitation(s: Array, t: Array, mask: Array) -> Array:
    squares = jnp.sum((s - t) ** 2, axis=-1)
    return (jnp.sum(jnp.where(mask, squares, 0), axis=(1, 2)) / (2 * mask.sum((1, 2)))).mean()


def pixel_kl(s: Array, t: Array) -> Array:
    return kl(log_softmax(t), log_softmax(s)).mean()


def pair_affinity(s: Array, t: Array) -> Array:
    a, b = (normalized(x.reshape(len(x), -1, x.shape[-1])) for x in (s, t))
    return jnp.mean((jnp.einsum("nid,njd->nij", a, a) - jnp.einsum("nid,njd->nij", b, b)) ** 2)


def region_affinity(s: Array, t: Array, regions: Array) -> Array:
    def affinity(x: Array) -> Array:
        masks, x = regions.astype(x.dtype)[..., None], x[:, :, :, None, :]
        count = masks.sum((1, 2))
        mean = (masks * x).sum((1, 2)) / count
        centered = masks * (x - mean[:, None, None])
        variance = (centered**2).sum((1, 2)) / count
        skewness = (centered**3).sum((1, 2)) / count / variance**1.5
        moments = normalized(jnp.stack([mean, variance, skewness], axis=1))
        return jnp.einsum("nric,nrjc->nrij", moments, moments)

    return jnp.mean((affinity(s) - affinity(t)) ** 2)


def joint_structure(s: Array, t: Array) -> Array:
    a, b = (normalized(x.reshape(len(x), -1, x.shape[-1]), axis=1) for x in (s, t))
    return jnp.mean((jnp.einsum("npi,npj->nij", a, a) - jnp.einsum("npi,npj->nij", b, b)) ** 2)
