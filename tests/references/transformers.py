"""References of `jaxkd.losses.transformers`: attention, relations between values, hidden states."""

from collections.abc import Callable

import numpy as np

from tests.references.base import kl, log_softmax


def directions(vectors: np.ndarray) -> np.ndarray:
    """n(x) = x/‖x‖₂ over the last axis, and n(0) = 0."""
    vectors = np.asarray(vectors, np.float64)
    largest = np.abs(vectors).max(-1, keepdims=True, initial=0)  # its square may be more, or less, than a float holds
    vectors = vectors / np.where(largest > 0, largest, 1)
    length = np.sqrt((vectors**2).sum(-1, keepdims=True))
    return vectors / np.where(length > 0, length, 1)


def drop_tokens(
    reference: Callable[..., np.ndarray],
    where: np.ndarray,
    arrays: tuple[np.ndarray, ...],
    *,
    token_axes: tuple[int, ...] | None = None,
    **hyper,
) -> np.ndarray:
    """The reference of the tokens that count, as queries and as keys, each at its place, and 0 at the others.

    Of ``[batch, heads, tokens, tokens]`` the last two axes are tokens, of ``[batch, tokens, features]`` and ``[batch,
    tokens, heads, features]`` the second is: told by the sizes, or by `token_axes` for all arrays where these do not.
    """
    tokens = where.shape[1]
    result = np.zeros(where.shape)
    for example, counts in enumerate(where):
        if not counts.any():
            continue
        kept = []
        for array in arrays:
            one = np.asarray(array)[example : example + 1]
            for axis in token_axes or axes_of_tokens(one.shape, tokens):
                one = np.compress(counts, one, axis=axis)
            kept.append(one)
        result[example, counts] = reference(*kept, **hyper)[0]
    return result


def axes_of_tokens(shape: tuple[int, ...], tokens: int) -> tuple[int, ...]:
    """Which axes of scores, features or values by head run over the tokens."""
    scores = len(shape) == 4 and shape[2:] == (tokens, tokens)
    features = len(shape) in (3, 4) and shape[1] == tokens
    if scores == features:
        raise ValueError(f"which axes of {list(shape)} are the {tokens} tokens? Say so by `token_axes`.")
    return (2, 3) if scores else (1,)


def attention_kl(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """The mean over heads of KL(softmax A_t ‖ softmax A_s) over the keys of every query (MiniLM, Wang et al. 2020).

    A is what stands before the softmax. A query that may attend to no key adds 0.
    """
    return kl(log_softmax(teacher), log_softmax(student)).mean(1)


def attention_mse(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """The mean over heads, and over the keys of every query, of (A_s - A_t)² (TinyBERT, Jiao et al. 2020).

    A is what stands before the softmax. A key at -inf in both is no key of this query and head.
    """
    student, teacher = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
    batch, heads, queries, _ = student.shape
    result = np.zeros((batch, queries))
    for example, head, query in np.ndindex(batch, heads, queries):
        s, t = student[example, head, query], teacher[example, head, query]
        keys = ~(np.isneginf(s) & np.isneginf(t))
        if keys.any():
            result[example, query] += np.mean((s[keys] - t[keys]) ** 2) / heads
    return result


def value_relation_kl(
    student: np.ndarray, teacher: np.ndarray, *, heads: int | None = None, segments: np.ndarray | None = None
) -> np.ndarray:
    """The mean over heads of KL(R_t‖R_s), R = softmax(V Vᵀ/√d) over the keys of every query (MiniLM, Wang et al. 2020).

    V is [batch, tokens, features], of which every head has its share d = features / heads in order (MiniLMv2, Wang et
    al. 2021; one head unless told), or [batch, tokens, heads, d]. With segments a query has the keys of its own one.
    """
    student, teacher = by_head(student, heads), by_head(teacher, heads)
    batch, tokens, heads, _ = student.shape
    result = np.zeros((batch, tokens))
    for example, head in np.ndindex(batch, heads):
        relations = []
        for values in (teacher[example, :, head], student[example, :, head]):
            product = values @ values.T / np.sqrt(values.shape[-1])
            if segments is not None:
                product = np.where(segments[example][:, None] == segments[example][None, :], product, -np.inf)
            relations.append(log_softmax(product))
        result[example] += kl(*relations) / heads
    return result


def by_head(values: np.ndarray, heads: int | None) -> np.ndarray:
    """[batch, tokens, heads, d] of values in either form."""
    values = np.asarray(values, np.float64)
    if values.ndim == 4:
        return values
    batch, tokens, features = values.shape
    heads = heads or 1
    return values.reshape(batch, tokens, heads, features // heads)


def hidden_cosine(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """1 - cos(h_s, h_t) of every token; the cosine of a zero vector is 0 (DistilBERT, Sanh et al. 2019)."""
    return 1 - (directions(student) * directions(teacher)).sum(-1)


def hidden_mse(student: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """The mean over features of (h_s - h_t)² of every token (TinyBERT, Jiao et al. 2020)."""
    return ((np.asarray(student, np.float64) - np.asarray(teacher, np.float64)) ** 2).mean(-1)
