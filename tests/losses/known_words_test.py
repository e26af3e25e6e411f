"""Chunked losses of labels and of a teacher's known words: the dense ones, also with a KL in the same pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxkd import losses
from jaxkd.losses.chunked import _kernel
from tests.loss_rows.kl import top
from tests.loss_runs import as_users_compile
from tests.losses.chunked_test import TOKENS, VOCABULARY, WORDS, close, inputs, products, quickly, spec

LABELS = np.arange(TOKENS) * 5 % VOCABULARY
SLOW = pytest.mark.slow
STUDENT = ("student_hidden", "student_kernel", "student_bias")
TWO = np.stack([np.full(TOKENS, 0.3 / TOKENS), np.full(TOKENS, 0.7 / TOKENS)])


def student_logits(arrays):
    return arrays["student_hidden"] @ arrays["student_kernel"] + arrays["student_bias"][None, :]


def teacher_logits(arrays):
    return arrays["teacher_hidden"] @ arrays["teacher_kernel"] + arrays["teacher_bias"][None, :]


def known_words(k=5, vocabulary=VOCABULARY, tokens=TOKENS):
    """Log-probabilities and indices as caches have them: with padding, and a sampled word that is listed twice."""
    log_probs, indices = top(np.random.default_rng(3).normal(size=(tokens, vocabulary)), k)
    log_probs[::2, -1], indices[::2, -1] = log_probs[::2, 1], indices[::2, 1]
    log_probs[1::3, -2:], indices[1::3, -2:] = -np.inf, -1
    return jnp.asarray(log_probs), jnp.asarray(indices)


def both(arrays, labels=LABELS, **options):
    return losses.linear_cross_entropy_and_kl(
        arrays["student_hidden"],
        arrays["student_kernel"],
        arrays["teacher_hidden"],
        arrays["teacher_kernel"],
        labels,
        student_bias=arrays["student_bias"],
        teacher_bias=arrays["teacher_bias"],
        **{"temperature": 2.0, "chunk": 5} | options,
    )


def dense_both(arrays, labels=LABELS, where=None):
    student, teacher = student_logits(arrays), teacher_logits(arrays)
    kl = losses.soft_target_kl(student, teacher, temperature=2.0, where=where)
    return losses.cross_entropy(student, jnp.asarray(labels), where=where), kl


def label_loss(arrays, **options):
    return losses.linear_cross_entropy(
        *(arrays[n] for n in STUDENT[:2]), LABELS, student_bias=arrays[STUDENT[2]], **options
    )


def top_loss(arrays, **options):
    known = known_words()
    return losses.linear_top_k_kl(
        *(arrays[n] for n in STUDENT[:2]), *known, student_bias=arrays[STUDENT[2]], temperature=2.0, **options
    )


def dense_top(arrays, **options):
    return losses.top_k_kl(student_logits(arrays), *known_words(), temperature=2.0, **options)


def dense_label(arrays, **options):
    return losses.cross_entropy(student_logits(arrays), jnp.asarray(LABELS), **options)


def drawn_words():
    """Weights and indices as of a cache of samples: words listed twice, weights that sum to no 1, and padding."""
    rng = np.random.default_rng(4)
    weights, indices = rng.random((TOKENS, 5)), rng.integers(0, VOCABULARY, (TOKENS, 5))
    weights[1::3, -1], indices[1::3, -1] = 0, -1
    return jnp.asarray(weights), jnp.asarray(indices)


def sparse_loss(arrays, **options):
    return losses.linear_sparse_cross_entropy(
        *(arrays[n] for n in STUDENT[:2]), *drawn_words(), student_bias=arrays[STUDENT[2]], **options
    )


def dense_sparse(arrays, **options):
    return losses.sparse_cross_entropy(student_logits(arrays), *drawn_words(), **options)


ONE = {"labels": (label_loss, dense_label), "top k": (top_loss, dense_top), "drawn": (sparse_loss, dense_sparse)}


def pulled(function, cotangent):
    """Value, and gradients of the student, for one cotangent or a pair."""

    def run(arrays):
        value, pullback = jax.vjp(lambda part: function(arrays | part), {name: arrays[name] for name in STUDENT})
        cast = jax.tree.map(lambda v, c: jnp.asarray(c, v.dtype), value, cotangent)
        return value, pullback(cast)[0]

    return run


@pytest.mark.parametrize("name", ONE)
def test_every_cotangent(name):
    where = jnp.arange(TOKENS) % 5 != 2
    linear, dense = ONE[name]
    with jax.enable_x64(True):
        arrays = inputs()
        for cotangent in (np.full(TOKENS, 1 / TOKENS), np.linspace(-1, 2, TOKENS)):
            found = quickly(pulled(lambda a: linear(a, where=where, chunk=5), cotangent))(arrays)
            close(found, pulled(lambda a: dense(a, where=where), cotangent)(arrays))


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE)
def test_excluded_words(name):
    """Both buckets and labels, of which one is excluded: infinite, with finite gradients."""
    linear, dense = ONE[name]
    with jax.enable_x64(True):
        arrays = inputs()
        arrays["student_bias"] = arrays["student_bias"].at[np.array([3, 5])].set(-jnp.inf)
        value, gradients = quickly(pulled(lambda a: linear(a, chunk=5), np.ones(TOKENS)))(arrays)
        expected, _ = pulled(dense, np.ones(TOKENS))(arrays)
        close(value, expected)
        assert np.isinf(value).any() and np.isfinite(value).any()
        finite = np.isfinite(value).astype(float)
        for gradient in gradients.values():
            assert np.isfinite(gradient).all()
        close(
            quickly(pulled(lambda a: linear(a, chunk=5, where=finite > 0), finite))(arrays)[1],
            pulled(lambda a: dense(a, where=finite > 0), finite)(arrays)[1],
        )


@pytest.mark.parametrize("devices, check_vma", [pytest.param(4, True, marks=SLOW), pytest.param(2, False, marks=SLOW)])
def test_a_vocabulary_over_devices(devices, check_vma):
    """Labels and indices count the words of all devices."""
    mesh = Mesh(np.array(jax.devices()[:devices]), (WORDS,))
    weights = np.linspace(1, 2, TOKENS)

    def all_of(arrays, **options):
        ce, kl = both(arrays, **options)
        return ce, kl, *(linear(arrays, chunk=5, **options) for linear, _ in ONE.values())

    def expected(arrays):
        return *dense_both(arrays), *(dense(arrays) for _, dense in ONE.values())

    cotangents = (*TWO, weights, weights, weights)
    with jax.enable_x64(True):
        arrays = inputs()
        specs = {name: spec(name) for name in arrays}
        step = jax.shard_map(
            pulled(lambda a: all_of(a, vocabulary_axis=WORDS), cotangents),
            mesh=mesh,
            in_specs=(specs,),
            out_specs=((PartitionSpec(),) * 5, {name: specs[name] for name in STUDENT}),
            check_vma=check_vma,
        )
        close(jax.jit(step)(arrays), pulled(expected, cotangents)(arrays), rtol=1e-8)


def test_mistaken_words_are_nan_without_a_gradient():
    arrays = inputs()
    wrong = jnp.asarray(LABELS).at[jnp.array([1, 4])].set(jnp.array([-1, VOCABULARY]))
    hidden, kernel = arrays["student_hidden"], arrays["student_kernel"]
    value, gradient = jax.value_and_grad(lambda h: losses.linear_cross_entropy(h, kernel, wrong).sum())(hidden)
    assert np.isnan(value)
    np.testing.assert_array_equal((gradient == 0).all(axis=1), np.isin(np.arange(TOKENS), (1, 4)))
    log_probs, indices = known_words()
    indices = indices.at[0, 0].set(VOCABULARY)  # no word
    log_probs = log_probs.at[3, 0].set(-9.0)
    indices = indices.at[3, 1].set(indices[3, 0])  # one word with two probabilities
    values = losses.linear_top_k_kl(hidden, kernel, log_probs, indices)
    np.testing.assert_array_equal(np.isnan(values), np.isin(np.arange(TOKENS), (0, 3)))
    np.testing.assert_array_equal(np.isnan(values), np.isnan(losses.top_k_kl(hidden @ kernel, log_probs, indices)))


# --- both in one pass -------------------------------------------------------------------------------------------------

PAIRS = {
    "announced": (TWO, (0.3, 0.7)),
    "a multiple of the announced": (-5 * TWO, (0.3, 0.7)),
    "one of them": (np.stack([TWO[0], 0 * TWO[0]]), (0.3, 0.0)),
    "not announced": (TWO, (1.0, 1.0)),
    "a weight each": (np.stack([np.linspace(-1, 2, TOKENS), np.linspace(3, 1, TOKENS)]), (0.3, 0.7)),
    "announced zeros": (TWO, (0.0, 0.0)),
    "nothing": (0 * TWO, (0.3, 0.7)),
}


@pytest.mark.parametrize(
    "name", [name if name in ("announced", "not announced") else pytest.param(name, marks=SLOW) for name in PAIRS]
)
def test_values_and_gradients_of_both(name):
    cotangents, weights = PAIRS[name]
    where = jnp.arange(TOKENS) % 5 != 2
    with jax.enable_x64(True):
        arrays = inputs()
        found = quickly(pulled(lambda a: both(a, where=where, weights=weights), tuple(cotangents)))(arrays)
        close(found, pulled(lambda a: dense_both(a, where=where), tuple(cotangents))(arrays))


def test_one_pass_where_the_weights_are_announced(monkeypatch):
    arrays, passes, run = inputs(), [], _kernel._run
    monkeypatch.setattr(_kernel, "_run", lambda *arguments: passes.append(arguments[1]) or run(*arguments))
    where = jnp.arange(TOKENS) % 3 > 0

    def count(weights, total, **options):
        passes.clear()
        with jax.disable_jit():
            jax.grad(lambda h: total(*both(arrays | {"student_hidden": h}, weights=weights, **options)))(
                arrays["student_hidden"]
            )
        return len(passes)

    assert count((0.3, 0.7), lambda ce, kl: 0.3 * ce.mean() + 0.7 * kl.mean()) == 1
    assert count((0.3, 0.7), lambda ce, kl: 9 * (0.3 * ce.sum() + 0.7 * kl.sum()) / 8, where=where) == 1
    assert count((1.0, 0.0), lambda ce, kl: ce.mean()) == 1
    assert count((0.3, 0.7), lambda ce, kl: 0.4 * ce.mean() + 0.7 * kl.mean()) == 2


def test_both_multiply_with_the_vocabulary_once():
    arrays = inputs()

    def total(part):
        ce, kl = both(arrays | part)
        return ce.mean() + kl.mean()

    part = {name: arrays[name] for name in STUDENT}
    assert products(jax.grad(total), part) == 2 * (2 + 2), "logits of two networks, two gradients; and once to repeat"


@pytest.mark.slow
def test_compiled_memory_of_both():
    """Batch 8 × 256 tokens, 32,000 words: at most 120 MiB with the gradients, also of an embedding table."""
    tokens, words, hidden = 2048, 32_000, (512, 1024)

    def temporary(table):
        shapes = (
            (tokens, hidden[0]),
            (words, hidden[0]) if table else (hidden[0], words),
            (tokens, hidden[1]),
            (hidden[1], words),
        )

        def total(student, kernel, teacher, teacher_kernel, labels):
            ce, kl = losses.linear_cross_entropy_and_kl(
                student, kernel, teacher, teacher_kernel, labels, transposed=(table, False)
            )
            return ce.mean() + kl.mean()

        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        step = jax.jit(jax.value_and_grad(total, argnums=(0, 1)), compiler_options=as_users_compile())
        compiled = step.lower(*arrays, jax.ShapeDtypeStruct((tokens,), jnp.int32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert max(temporary(False), temporary(True)) <= 120 * 2**20


@pytest.mark.slow
def test_compiled_memory_of_drawn_words():
    """50 draws of 32,000 words for 2048 tokens: at most a sixth of the logits' memory, with the gradients."""
    shapes = (2048, 512), (512, 32_000), (2048, 50)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    indices = jax.ShapeDtypeStruct(shapes[-1], jnp.int32)

    def temporary(loss):
        step = jax.jit(jax.value_and_grad(lambda *arrays: loss(*arrays).mean(), argnums=(0, 1)))
        return step.lower(*arrays, indices).compile().memory_analysis().temp_size_in_bytes

    dense = temporary(lambda hidden, kernel, *drawn: losses.sparse_cross_entropy(hidden @ kernel, *drawn))
    assert 6 * temporary(losses.linear_sparse_cross_entropy) <= dense


def test_mistakes():
    arrays = inputs()
    for weights in (1.0, (1.0,), (1.0, 1.0, 1.0), (1.0, np.nan), ("a", 1.0)):
        with pytest.raises(ValueError, match="weights: expected"):
            both(arrays, weights=weights)
    with pytest.raises(ValueError, match=r"labels: expected integer classes \[12\].*float"):
        both(arrays, labels=jnp.zeros(TOKENS))
    with pytest.raises(NotImplementedError, match="log_probs"):
        hidden, kernel, (log_probs, indices) = arrays["student_hidden"], arrays["student_kernel"], known_words()
        jax.grad(lambda x: losses.linear_top_k_kl(hidden, kernel, x, indices).sum())(log_probs)
    with pytest.raises(NotImplementedError, match="weights"):
        jax.grad(lambda x: losses.linear_sparse_cross_entropy(hidden, kernel, x, indices).sum())(log_probs)
