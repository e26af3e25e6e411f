"""`reverse_kl_to_go`: with the single-step part, the gradient of the reverse KL of whole sequences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.schemes.sequences import linear_reverse_kl_to_go, reverse_kl_to_go
from tests.references.base import finite_difference, log_softmax

WORDS, TOKENS = 3, 3
PREFIXES = {prefix: i for i, prefix in enumerate(p for n in range(TOKENS) for p in itertools.product((1, 2), repeat=n))}
"""Prefixes without an end, which is 0. A policy has a row of logits for each, so that it can be any distribution."""


def sequences():
    """Returns every sequence: rows of its prefixes, its tokens, and the mask of those up to the end."""
    rows, labels, masks = [], [], []
    for tokens in itertools.product(range(WORDS), repeat=TOKENS):
        end = tokens.index(0) if 0 in tokens else TOKENS - 1
        if any(tokens[end + 1 :]):
            continue
        rows.append([PREFIXES[tokens[:i]] if i <= end else 0 for i in range(TOKENS)])
        labels.append(tokens)
        masks.append([i <= end for i in range(TOKENS)])
    return np.array(rows), np.array(labels), np.array(masks)


ROWS, LABELS, MASKS = sequences()


def log_probabilities(table):
    """Returns the log-probability of every sequence, in float64."""
    picked = np.take_along_axis(log_softmax(table)[ROWS], LABELS[..., None], -1)[..., 0]
    return (picked * MASKS).sum(1)


def policies():
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, len(PREFIXES), WORDS))


def expected_gradient(student, teacher, *terms):
    """Returns the mean, over the sequences of the student, of the gradient of the sum over their tokens."""
    weights = jnp.asarray(np.exp(log_probabilities(student)), jnp.float32)

    def total(table):
        logits, taught = table[ROWS], jnp.asarray(teacher, jnp.float32)[ROWS]
        return jnp.sum(weights[:, None] * sum(term(logits, taught) for term in terms))

    return jax.jit(jax.grad(total))(jnp.asarray(student, jnp.float32))


def single(logits, taught):
    return losses.reverse_kl(logits, taught, where=jnp.asarray(MASKS))


def to_go(logits, taught, **options):
    options = {"length_normalized": False, "where": jnp.asarray(MASKS), **options}
    return reverse_kl_to_go(logits, taught, jnp.asarray(LABELS), **options)


def test_both_parts_are_the_gradient_of_the_reverse_kl_of_sequences():
    student, teacher = policies()
    assert np.exp(log_probabilities(student)).sum() == pytest.approx(1)

    def divergence(table):
        log_q, log_p = log_probabilities(table), log_probabilities(teacher)
        return (np.exp(log_q) * (log_q - log_p)).sum()

    exact = finite_difference(divergence, student)
    np.testing.assert_allclose(expected_gradient(student, teacher, single, to_go), exact, atol=1e-6)
    assert np.abs(expected_gradient(student, teacher, single) - exact).max() > 0.05  # the tokens after one matter


def test_values_follow_the_formula():
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(size=(2, 2, 4, 3))
    labels = rng.integers(0, 3, (2, 4))
    where = np.array([[True, True, True, False], [False, True, True, True]])
    log_q, log_p = (np.take_along_axis(log_softmax(x), labels[..., None], -1)[..., 0] for x in (student, teacher))
    for normalized in (False, True):
        expected = np.zeros((2, 4))
        for i, t in zip(*np.nonzero(where), strict=True):
            later = [log_p[i, u] - log_q[i, u] for u in range(t + 1, 4) if where[i, u]]
            value = np.mean(later) if normalized and later else np.sum(later)
            expected[i, t] = -value * log_q[i, t]
        found = reverse_kl_to_go(
            jnp.asarray(student), jnp.asarray(teacher), labels, where=where, length_normalized=normalized
        )
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_what_is_masked_is_not_read():
    rng = np.random.default_rng(1)
    student, teacher = jnp.asarray(rng.normal(size=(2, 2, 4, 3)))
    labels, where = rng.integers(0, 3, (2, 4)), np.arange(4) < np.array([[4], [2]])
    spoiled = jnp.where(where[..., None], student, jnp.nan), jnp.where(where[..., None], teacher, jnp.inf)

    def value_and_gradient(student, teacher, labels):
        run = jax.value_and_grad(lambda x: jnp.sum(reverse_kl_to_go(x, teacher, labels, where=where)))
        return run(student)

    expected = value_and_gradient(student, teacher, labels)
    found = value_and_gradient(*spoiled, np.where(where, labels, -1))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_token_that_the_teacher_excludes_is_infinite_and_has_no_gradient():
    teacher = jnp.zeros((1, 3, 2)).at[0, 2, 0].set(-jnp.inf)

    def values(student):
        return reverse_kl_to_go(student, teacher, jnp.array([[1, 1, 0]]))

    np.testing.assert_array_equal(values(jnp.zeros((1, 3, 2))), [[np.inf, np.inf, 0]])
    assert not jax.grad(lambda x: values(x).sum())(jnp.zeros((1, 3, 2))).any()


@pytest.mark.parametrize("caps, tables", [(None, False), ((1.5, None), (True, False))], ids=str)
def test_hidden_states_give_the_values_and_gradients_of_their_logits(caps, tables):
    rng = np.random.default_rng(2)
    with jax.enable_x64(True):
        student, kernel, bias = (jnp.asarray(rng.normal(size=s)) for s in ((2, 4, 3), (3, 5), (5,)))
        teacher, teacher_kernel = (jnp.asarray(rng.normal(size=s)) for s in ((2, 4, 2), (2, 5)))
        labels, where = rng.integers(0, 5, (2, 4)), np.arange(4) < np.array([[4], [2]])

        def dense(student, kernel):
            z = student @ kernel + bias[None, None, :]
            z = 1.5 * jnp.tanh(z / 1.5) if caps else z
            return reverse_kl_to_go(z, teacher @ teacher_kernel, labels, where=where)

        def linear(student, kernel):
            heads = student, kernel.T if tables else kernel, teacher, teacher_kernel
            options = {"student_bias": bias, "soft_cap": caps, "transposed": tables, "where": where, "chunk": 3}
            return linear_reverse_kl_to_go(*heads, labels, **options)

        weights = jnp.asarray(rng.normal(size=(2, 4)))
        found, expected = (
            jax.jit(jax.value_and_grad(lambda *x, f=f: (f(*x) * weights).sum(), (0, 1)))(student, kernel)
            for f in (linear, dense)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, expected)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="of the same sequences"):
        linear_reverse_kl_to_go(
            jnp.zeros((1, 2, 3)), jnp.zeros((3, 4)), jnp.zeros((1, 3, 3)), jnp.zeros((3, 4)), jnp.zeros((1, 2), int)
        )
    with pytest.raises(ValueError, match="of one shape"):
        reverse_kl_to_go(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 4)), jnp.zeros((1, 2), int))
    with pytest.raises(ValueError, match="labels"):
        reverse_kl_to_go(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 3)), jnp.zeros((1, 3), int))
