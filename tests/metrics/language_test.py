"""Metrics of language models and embeddings against NumPy: merged parts give the value of the whole set."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxkd import metrics
from jaxkd.types import Context

RNG = np.random.default_rng(0)
PARTS = (slice(0, 1), slice(1, 6))
MASK = np.arange(5) < np.array([5, 1, 4, 2, 0, 3])[:, None]


def context(student, teacher=None, **batch):
    teacher = {} if teacher is None else teacher if isinstance(teacher, dict) else {"logits": teacher}
    arrays = ({"logits": student}, teacher, batch)
    return Context(*jax.tree.map(jnp.asarray, arrays), 0)


def softmax(logits):
    p = np.exp(np.asarray(logits, np.float64))
    return p / p.sum(axis=-1, keepdims=True)


def merged(function, *arrays, **batch):
    """Metrics of two unequal parts of a set, merged."""
    found: dict = {}
    for part in PARTS:
        given = context(*(x[part] for x in arrays), **{name: x[part] for name, x in batch.items()})
        found = metrics.merge(found, function(given))
    return metrics.compute(found)


# --- imitation ------------------------------------------------------------------------------------------------------


def test_imitation_equals_numpy():
    s, t = (2 * RNG.normal(size=(6, 5, 7)).astype(np.float32) for _ in range(2))
    s[~MASK] = np.nan
    found = merged(jax.jit(lambda given: metrics.imitation(given, draft=3)), s, t, mask=MASK)
    q, p = softmax(s)[MASK], softmax(t)[MASK]
    alpha = np.minimum(p, q).sum(-1).mean()
    expected = {
        "forward_kl": (p * np.log(p / q)).sum(-1).mean(),
        "reverse_kl": (q * np.log(q / p)).sum(-1).mean(),
        "acceptance": alpha,
        "accepted_length": (1 - alpha**4) / (1 - alpha),
    }
    assert found == pytest.approx(expected, rel=1e-5)


def test_an_equal_draft_is_accepted_whole():
    logits = RNG.normal(size=(2, 3)).astype(np.float32)
    logits[:, 1] = -np.inf
    found = metrics.compute(metrics.imitation(context(logits, logits), draft=5))
    assert found == pytest.approx({"forward_kl": 0, "reverse_kl": 0, "acceptance": 1, "accepted_length": 6}, abs=1e-5)


def test_imitation_needs_one_vocabulary():
    with pytest.raises(ValueError, match=r"imitation: expected logits of one shape"):
        metrics.imitation(context(np.zeros((2, 3)), np.zeros((2, 4))))
    with pytest.raises(ValueError, match="draft: expected at least one token, got 0"):
        metrics.imitation(context(np.zeros((2, 3)), np.zeros((2, 3))), draft=0)


# --- bounds of the KL -----------------------------------------------------------------------------------------------


def known(teacher, k, tail=True):
    log_p = jax.nn.log_softmax(jnp.asarray(teacher))
    log_probs, indices = jax.lax.top_k(log_p, k)
    rest = -np.sort(-softmax(teacher), axis=-1)[..., k:].sum(-1)
    with np.errstate(divide="ignore"):
        log_tail = np.log(rest).astype(np.float32)
    return {"logits/log_probs": log_probs, "logits/indices": indices} | ({"logits/log_tail": log_tail} if tail else {})


@pytest.fixture(scope="module")
def bounds():
    return jax.jit(metrics.kl_bounds)


def each(bounds, student, teacher, k, tail=True):
    """Bounds of each row, as float64."""
    given = [known(teacher[i : i + 1], k, tail) for i in range(len(teacher))]
    found = [metrics.compute(bounds(context(student[i : i + 1], given[i]))) for i in range(len(teacher))]
    return np.array([[x["kl_lower"], x["kl_upper"]] for x in found]).T


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("tail", [True, False])
def test_the_kl_is_between_its_bounds(bounds, k, tail):
    student, teacher = (3 * RNG.normal(size=(20, 8)).astype(np.float32) for _ in range(2))
    lower, upper = each(bounds, student, teacher, k, tail)
    p, q = softmax(teacher), softmax(student)
    kl = (p * np.log(p / q)).sum(-1)
    assert (lower <= kl + 1e-5).all() and (kl <= upper + 1e-5).all()
    if k == 8:
        np.testing.assert_allclose([lower, upper], [kl, kl], rtol=1e-4, atol=1e-5)
    else:
        assert (upper > kl + 1e-3).any() and (lower < kl - 1e-3).any()


def worst(p, q, k):
    """Largest KL of a teacher with these k probabilities: every vertex of the tail's polytope."""
    order = np.argsort(-p)
    head, most, rest = p[order[:k]], p[order[k - 1]], p[order[k:]].sum()
    full = int(rest / most + 1e-9)
    tail = [most] * full + [rest - full * most]
    tail = tail[: len(p) - k] + [0.0] * (len(p) - k - len(tail))
    found = max(
        sum(x * np.log(x / y) for x, y in zip(vertex, q[order[k:]], strict=True) if x > 1e-12)
        for vertex in set(itertools.permutations(tail))
    )
    return (head * np.log(head / q[order[:k]])).sum() + found


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_upper_bound_is_attained(bounds, k):
    student, teacher = (RNG.normal(size=(12, 7)).astype(np.float32) for _ in range(2))
    expected = [worst(p, q, k) for p, q in zip(softmax(teacher), softmax(student), strict=True)]
    np.testing.assert_allclose(each(bounds, student, teacher, k)[1], expected, rtol=2e-5, atol=1e-5)


def test_bounds_follow_masks_and_padded_entries(bounds):
    student, teacher = (RNG.normal(size=(6, 5, 8)).astype(np.float32) for _ in range(2))
    given = {name: np.array(x) for name, x in known(teacher, 3).items()}
    student[~MASK] = np.nan
    whole = metrics.compute(bounds(context(student, given, mask=MASK)))
    rows = {name: x[MASK] for name, x in given.items()}
    dropped = metrics.compute(bounds(context(student[MASK], rows)))
    assert whole == pytest.approx(dropped, rel=1e-5)
    padded = {
        "logits/log_probs": np.pad(rows["logits/log_probs"], ((0, 0), (0, 2)), constant_values=-np.inf),
        "logits/indices": np.pad(rows["logits/indices"], ((0, 0), (0, 2)), constant_values=-1),
    }
    assert metrics.compute(bounds(context(student[MASK], padded))) == pytest.approx(dropped, rel=1e-4)
    wrong = {**rows, "logits/indices": rows["logits/indices"] + 8}
    assert math.isnan(metrics.compute(bounds(context(student[MASK], wrong)))["kl_upper"])


def test_the_upper_bound_is_infinite_where_the_student_excludes_the_tail(bounds):
    student, teacher = np.array([[0.0, 0.0, -np.inf]], np.float32), np.array([[3.0, 0.0, 0.0]], np.float32)
    lower, upper = each(bounds, student, teacher, 1)
    assert np.isfinite(lower).all() and np.isposinf(upper).all()


# --- calibration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [1, 15])
def test_calibration_equals_numpy(bins):
    s, t = (2 * RNG.normal(size=(6, 5, 4)).astype(np.float32) for _ in range(2))
    s[0, 0] = [50, 0, 0, 0]  # a confidence of 1
    label = RNG.integers(0, 4, (6, 5))
    label[0, 1] = -100
    found = merged(jax.jit(lambda given: metrics.calibration(given, bins=bins)), s, t, mask=MASK, label=label)
    kept = MASK & (label >= 0)

    def ece(logits):
        p = softmax(logits)[kept]
        confidence, right = p.max(-1), p.argmax(-1) == label[kept]
        number = np.minimum(np.ceil(confidence * bins).astype(int), bins)
        each = [(number == m) for m in range(1, bins + 1)]
        return sum(here.mean() * abs(right[here].mean() - confidence[here].mean()) for here in each if here.any())

    assert found == pytest.approx({"ece": ece(s), "teacher_ece": ece(t)}, rel=1e-5)


def test_calibration_needs_labels_and_bins():
    logits, label = np.zeros((2, 3)), np.zeros(2, int)
    with pytest.raises(ValueError, match=r"calibration: expected logits .* got float32\[2, 3\] and float32\[2, 3\]"):
        metrics.calibration(context(logits, label=logits))
    with pytest.raises(ValueError, match="bins: expected at least 1"):
        metrics.calibration(context(logits, label=label), bins=0)
    empty = metrics.calibration(context(logits, label=label, mask=np.zeros(2, bool)))
    assert math.isnan(metrics.compute(empty)["ece"])


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_bits_per_byte_are_comparable_across_tokenizers():
    """One distribution over texts of two bytes, as bytes and as whole pieces."""
    first, second = softmax(RNG.normal(size=4)), softmax(RNG.normal(size=(4, 4)))
    joint = (first[:, None] * second).reshape(1, 1, 16)
    a, b = 2, 3
    by_byte = context(np.log([[first, second[a]]]), label=np.array([[a, b]]), bytes=np.ones((1, 2), int))
    by_piece = context(np.log(joint), label=np.array([[4 * a + b]]), bytes=np.array([[2]]))
    one, other = (metrics.compute(metrics.tokens(given, bytes_path="batch/bytes")) for given in (by_byte, by_piece))
    assert one["bits_per_byte"] == pytest.approx(other["bits_per_byte"], rel=1e-5)
    assert one["perplexity"] != pytest.approx(other["perplexity"], rel=0.1)
    assert (one["tokens_per_example"], other["tokens_per_example"]) == (2, 1)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_n_equals_a_set(n):
    ids = RNG.integers(0, 3, (6, 5))
    mask = MASK.copy()
    mask[0, 2] = False  # no n-gram reaches over an excluded token
    grams = [
        tuple(row[i : i + n])
        for row, kept in zip(ids.tolist(), mask, strict=True)
        for i in range(6 - n)
        if kept[i : i + n].all()
    ]
    assert metrics.distinct_n(ids, n, where=mask) == len(set(grams)) / len(grams)
    assert metrics.distinct_n(np.array([[1, 1, 1]]), n) == 1 / (4 - n)


def test_distinct_n_of_nothing():
    assert math.isnan(metrics.distinct_n(np.array([[1, 2]]), 3))
    assert math.isnan(metrics.distinct_n(np.array([[1, 2]]), 1, where=np.zeros((1, 2), bool)))
    with pytest.raises(ValueError, match=r"distinct_n: expected integers .* got float64\[1, 2\], bool\[1, 2\] and 2"):
        metrics.distinct_n(np.zeros((1, 2)))


# --- embeddings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [3, 1000], ids=["ties", "few-ties"])
def test_spearman_equals_scipy(values):
    x, y = (RNG.integers(0, values, 40) / 7 for _ in range(2))
    assert metrics.spearman(x, y) == pytest.approx(scipy.stats.spearmanr(x, y).statistic, rel=1e-12)
    assert metrics.spearman(x, -x) == pytest.approx(-1)


def test_spearman_of_constants_and_of_no_numbers():
    assert math.isnan(metrics.spearman(np.ones(4), np.arange(4.0)))
    for x, y, message in (
        (np.ones(3), np.ones(2), "one y for each of the 3 x, got 2"),
        (np.array([1.0, np.nan]), np.ones(2), r"spearman, x: .* got \[2\] with NaN"),
        (np.ones(2), np.ones((2, 1)), r"spearman, y: .* got \[2, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.spearman(x, y)


def test_retrieval_is_the_mean_over_the_orders_of_equal_answers():
    x, y = RNG.normal(size=(7, 3)), RNG.normal(size=(7, 3))
    y[3], y[5], y[6] = y[0], 4 * y[0], 0
    unit = y / np.where(np.linalg.norm(y, axis=1) > 0, np.linalg.norm(y, axis=1), 1)[:, None]
    cosine = x @ unit.T / np.linalg.norm(x, axis=1)[:, None]
    cosine[:, [3, 5]] = cosine[:, [0]]
    ranks = np.array(
        [
            [[row[order].argsort(kind="stable").tolist()[::-1].index(order.index(i)) for i, row in enumerate(cosine)]]
            for order in map(list, itertools.permutations(range(7)))
        ]
    )
    ranks = 1 + ranks.reshape(-1, 7)
    found = metrics.retrieval(x, y)
    assert found["mrr"] == pytest.approx((1 / ranks).mean(), rel=1e-9)
    assert found["recall_at_1"] == pytest.approx((ranks <= 1).mean(), rel=1e-9)
    assert found["recall_at_5"] == pytest.approx((ranks <= 5).mean(), rel=1e-9)
    assert found["recall_at_10"] == 1


def test_constant_embeddings_gain_nothing():
    ones = np.ones((2000, 4))
    found = metrics.retrieval(RNG.normal(size=(2000, 4)), ones)
    assert found["mrr"] == pytest.approx((1 / np.arange(1, 2001)).mean(), rel=1e-9)
    assert found["recall_at_10"] == pytest.approx(10 / 2000, rel=1e-9)
    with pytest.raises(ValueError, match=r"expected y of the shape of x, \[2000, 4\], got \[2000, 3\]"):
        metrics.retrieval(ones, ones[:, :3])
    with pytest.raises(ValueError, match=r"retrieval, y: expected finite .* got \[2000, 4\] with NaN"):
        metrics.retrieval(ones, ones * np.nan)


def levenshtein(a, b):
    """Wagner & Fischer's table, cell by cell."""
    d = np.zeros((len(a) + 1, len(b) + 1), int)
    d[:, 0], d[0] = np.arange(len(a) + 1), np.arange(len(b) + 1)
    for i, j in itertools.product(range(len(a)), range(len(b))):
        d[i + 1, j + 1] = min(d[i, j] + (a[i] != b[j]), d[i, j + 1] + 1, d[i + 1, j] + 1)
    return d[-1, -1]


def test_edit_distances_are_those_of_the_table():
    x, y = RNG.integers(0, 3, (60, 7)), RNG.integers(0, 3, (60, 5))
    masks = RNG.random(x.shape) < 0.7, RNG.random(y.shape) < 0.7
    expected = [levenshtein(a[k], b[n]) for a, b, k, n in zip(x, y, *masks, strict=True)]
    assert metrics.edit_distance(x, y, where=masks[0], y_where=masks[1]).tolist() == expected
    assert metrics.edit_distance(y, x).tolist() == [levenshtein(b, a) for a, b in zip(x, y, strict=True)]
    assert metrics.edit_distance(x, y, where=np.zeros_like(masks[0])).tolist() == [5] * 60
    with pytest.raises(ValueError, match="as many rows of y as of x, 60, got 2"):
        metrics.edit_distance(x, y[:2])
    with pytest.raises(ValueError, match="edit_distance, y: expected integers"):
        metrics.edit_distance(x, y, y_where=masks[0])
