"""Properties of the losses of transformers: padding, causal and cross attention, heads of either form."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests import references
from tests.loss_runs import run
from tests.loss_table import BY_NAME

INF = np.inf
KL, MSE, VALUES, COSINE = (
    BY_NAME[name] for name in ("attention_kl", "attention_mse", "value_relation_kl", "hidden_cosine")
)
SCORES = pytest.mark.parametrize("row", [KL, MSE], ids=str)
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
RAGGED = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 0, 1, 1, 1], [0, 0, 0, 0, 0]], bool)


# --- padding ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", [KL, MSE, VALUES], ids=str)
def test_padded_batch_equals_single_sentences(row):
    """A token that does not count is neither a query nor a key: each sentence has the value it has alone."""
    shape = (4, 5, 2, 3) if row is VALUES else (4, 2, 5, 5)
    arrays = row.inputs((shape, shape))
    value, gradients = run(row, row.spoil(arrays, RAGGED, np.nan), where=RAGGED)
    for index, counts in enumerate(RAGGED):
        if row is VALUES:
            alone = tuple(array[index : index + 1, counts] for array in arrays)
        else:
            alone = tuple(array[index : index + 1][:, :, counts][:, :, :, counts] for array in arrays)
        np.testing.assert_array_equal(value[index, ~counts], 0)
        if not counts.any():
            continue
        expected, slopes = run(row, alone)
        np.testing.assert_allclose(value[index, counts], expected[0], rtol=1e-12)
        for gradient, slope in zip(gradients, slopes, strict=True):
            rest = gradient[index].copy()
            if row is VALUES:
                np.testing.assert_allclose(rest[counts], slope[0], rtol=1e-9, atol=1e-14)
                rest[counts] = 0
            else:
                np.testing.assert_allclose(rest[:, counts][:, :, counts], slope[0], rtol=1e-9, atol=1e-14)
                rest[:, np.outer(counts, counts)] = 0
            np.testing.assert_array_equal(rest, 0)


@SCORES
def test_a_mask_is_the_same_as_scores_of_minus_infinity(row):
    """Of both networks, for the queries that count."""
    arrays = row.inputs(((4, 2, 5, 5),) * 2)
    masked, masked_gradients = run(row, arrays, where=RAGGED)
    hidden = tuple(np.where(RAGGED[:, None, None, :], array, -INF) for array in arrays)
    value, gradients = run(row, hidden, cotangent=RAGGED * 1.0)
    np.testing.assert_allclose(masked, np.where(RAGGED, value, 0), rtol=1e-12)
    for gradient, expected in zip(masked_gradients, gradients, strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("row", [KL, MSE, VALUES], ids=str)
def test_padded_key_has_no_effect(row):
    """Zeroing the padded queries would not do: the softmax and the mean run over the keys that count."""
    arrays = row.inputs()
    where = np.ones((5, 3), bool)
    where[:, 2] = False
    masked, whole = run(row, arrays, where=where)[0], run(row, arrays)[0]
    assert np.abs(masked[:, :2] - whole[:, :2]).min() > 1e-4


def test_the_mean_over_tokens_is_a_masked_mean():
    """The published scalar of a padded batch is `jnp.mean` with the same mask."""
    arrays = KL.inputs(((4, 2, 5, 5),) * 2)
    value = run(KL, arrays, where=RAGGED)[0]
    expected = np.concatenate(
        [references.attention_kl(*(a[i : i + 1][:, :, c][:, :, :, c] for a in arrays))[0] for i, c in enumerate(RAGGED)]
    )
    np.testing.assert_allclose(np.mean(value, where=RAGGED), expected.mean(), rtol=1e-12)


def test_ignoring_the_mask_changes_the_cosine_loss():
    """A fused kernel in use averages over padding too; padding of zeros would even count as orthogonal."""
    student, teacher = COSINE.inputs(((4, 5, 6),) * 2)
    student, teacher = (np.where(RAGGED[..., None], array, 0) for array in (student, teacher))
    value = run(COSINE, (student, teacher), where=RAGGED)[0]
    right = np.mean(references.hidden_cosine(student, teacher), where=RAGGED)
    ignoring = references.hidden_cosine(student, teacher).mean()
    assert abs(ignoring - right) > 1e-2
    np.testing.assert_allclose(value.sum() / RAGGED.sum(), right, rtol=1e-12)
    np.testing.assert_array_equal(value[~RAGGED], 0)


def test_zero_padding_has_a_finite_gradient_without_a_mask():
    """The NaN that ends a long run: a vector of zeros in a cosine."""
    student, teacher = COSINE.inputs(((4, 5, 6),) * 2)
    student, teacher = (np.where(RAGGED[..., None], array, 0) for array in (student, teacher))
    for dtype in (np.float32, jnp.bfloat16):
        value, gradients = run(COSINE, (student, teacher), dtype=dtype)
        np.testing.assert_array_equal(value[~RAGGED], 1)
        for gradient in gradients:
            assert np.isfinite(gradient.astype(np.float32)).all()
            assert (gradient[~RAGGED] == 0).all()


def test_token_mask_is_refused_for_cross_attention():
    scores = jnp.zeros((2, 1, 3, 4))
    assert losses.attention_kl(scores, scores).shape == (2, 3)
    for loss in (losses.attention_kl, losses.attention_mse):
        with pytest.raises(ValueError, match=r"where.*self-attention.*\[2, 1, 3, 4\].*-inf"):
            loss(scores, scores, where=jnp.ones((2, 3), bool))


# --- scores of minus infinity -----------------------------------------------------------------------------------------


@DTYPES
def test_causal_attention_is_attention_to_the_past(dtype):
    """Query i has i + 1 keys, in value and gradient."""
    student, teacher = (np.where(np.tri(4, dtype=bool), array, -INF) for array in KL.inputs(((2, 3, 4, 4),) * 2))
    for row in (KL, MSE):
        value, gradients = run(row, (student, teacher), dtype=dtype)
        for query in range(4):
            seen = tuple(array[:, :, query : query + 1, : query + 1] for array in (student, teacher))
            expected, slopes = run(row, seen, dtype=dtype)
            np.testing.assert_allclose(value[:, query], expected[:, 0], rtol=1e-5, atol=1e-7)
            for gradient, slope in zip(gradients, slopes, strict=True):
                np.testing.assert_allclose(gradient[:, :, query, : query + 1], slope[:, :, 0], rtol=1e-4, atol=1e-7)
                np.testing.assert_array_equal(gradient[:, :, query, query + 1 :], 0)


@DTYPES
def test_key_that_only_the_student_forbids(dtype):
    """Truly infinite, for the query alone; the student's gradient is p_s - p_t at the keys it has."""
    student, teacher = np.zeros((1, 1, 3, 3)), np.log([[[[0.5, 0.25, 0.25]] * 3]])
    student[..., 0, 2] = -INF
    value, (slope_s, slope_t) = run(KL, (student, teacher), dtype=dtype)
    assert value[0, 0] == INF
    assert np.isfinite(value[0, 1:]).all()
    np.testing.assert_allclose(slope_s[0, 0, 0], [0.0, 0.25, 0.0], atol=1e-6)
    assert np.isfinite(slope_t).all()
    value, slopes = run(MSE, (student, teacher), dtype=dtype)
    assert list(np.isinf(value[0])) == [True, False, False]
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_an_infinite_query_does_not_spoil_a_masked_mean():
    student, teacher = np.zeros((1, 1, 3, 3)), np.zeros((1, 1, 3, 3))
    student[..., 0, 2] = -INF
    where = np.array([[False, True, True]])
    value, slopes = run(KL, (student, teacher), where=where)
    np.testing.assert_array_equal(value, 0)
    assert all(np.isfinite(slope).all() for slope in slopes)


def test_nan_is_not_a_forbidden_key():
    """A network that diverged has to be heard of."""
    scores = np.zeros((1, 1, 2, 2))
    broken = scores.copy()
    broken[0, 0, 0, 0] = np.nan
    for row in (KL, MSE):
        for arrays in ((broken, scores), (scores, broken)):
            assert list(np.isnan(run(row, arrays)[0][0])) == [True, False]


def test_scores_of_an_attention_layer():
    """Queries and keys to scores to the loss: learning from a teacher with a causal mask, by gradient descent."""
    rng = np.random.default_rng(0)
    q, k, teacher = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 4, 2, 3),) * 2 + ((2, 2, 4, 4),)
    )
    causal = jnp.tril(jnp.ones((4, 4), bool))[None, None]

    def loss(parameters):
        scores = jnp.einsum("bqhd,bkhd->bhqk", *parameters) / math.sqrt(3)
        return losses.attention_kl(jnp.where(causal, scores, -jnp.inf), jnp.where(causal, teacher, -jnp.inf)).mean()

    step = jax.jit(lambda p: jax.tree.map(lambda x, g: x - 3.0 * g, p, jax.grad(loss)(p)))
    parameters, before = (q, k), loss((q, k))
    for _ in range(300):
        parameters = step(parameters)
    assert loss(parameters) < 0.1 * before


# --- value relations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_features_split_into_heads(heads):
    """Relation heads are consecutive parts, whatever the numbers of features."""
    student, teacher = VALUES.inputs(((4, 5, 6), (4, 5, 12)))
    expected = references.value_relation_kl(student, teacher, heads=heads)
    value, gradients = run(VALUES, (student, teacher), hyper={"heads": heads})
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    apart = student.reshape(4, 5, heads, 6 // heads), teacher.reshape(4, 5, heads, 12 // heads)
    np.testing.assert_allclose(run(VALUES, apart)[0], expected, rtol=1e-9)
    np.testing.assert_allclose(run(VALUES, (apart[0], teacher), hyper={"heads": heads})[0], expected, rtol=1e-9)
    masked = run(VALUES, (student, teacher), where=RAGGED, hyper={"heads": heads})[0]
    kept = references.drop_tokens(references.value_relation_kl, RAGGED, (student, teacher), heads=heads)
    np.testing.assert_allclose(masked, kept, rtol=1e-9)
    assert [gradient.shape for gradient in gradients] == [student.shape, teacher.shape]


@pytest.mark.parametrize("heads", [None, 0, -1, 4, 7])
def test_heads_that_do_not_divide_the_features(heads):
    values = jnp.ones((2, 3, 6))
    with pytest.raises(ValueError, match=rf"heads.*divides.*\[2, 3, 6\].*{heads}"):
        losses.value_relation_kl(values, values, heads=heads)


def test_heads_that_contradict_the_values():
    values = jnp.ones((2, 3, 2, 6))
    with pytest.raises(ValueError, match=r"student.*\[2, 3, 2, 6\].*heads=3"):
        losses.value_relation_kl(values, values, heads=3)


def test_documents_of_a_packed_row_have_no_relation():
    student, teacher = VALUES.inputs()
    segments = jnp.broadcast_to(jnp.array([[4, 4, 7]]), student.shape[:2])
    found = losses.value_relation_kl(student, teacher, segments=segments)
    apart = [references.value_relation_kl(student[:, part], teacher[:, part]) for part in (slice(0, 2), slice(2, 3))]
    np.testing.assert_allclose(found, np.concatenate(apart, axis=1), rtol=1e-4, atol=1e-6)
    with pytest.raises(ValueError, match=r"segments: expected integers \[5, 3\], got int32\[5\]"):
        losses.value_relation_kl(student, teacher, segments=segments[:, 0])


def test_values_are_scaled_by_their_own_size():
    """A student of zero-padded features has another √d: the same relations times √(d_s / d_t)."""
    values = VALUES.inputs()[0]
    padded = np.concatenate([values, 0 * values], axis=-1)
    np.testing.assert_allclose(run(VALUES, (padded * 2**0.25, values))[0], 0, atol=1e-12)
    assert run(VALUES, (padded, values))[0].min() > 1e-6


def test_memory_of_value_relations_is_that_of_the_relations():
    shapes = [jax.ShapeDtypeStruct((2, 64, 4, features), jnp.float32) for features in (16, 32)]
    gradient = jax.grad(lambda *arrays: losses.value_relation_kl(*arrays).sum(), argnums=(0, 1))
    sizes = [
        math.prod(variable.aval.shape)
        for equation in jax.make_jaxpr(gradient)(*shapes).jaxpr.eqns
        for variable in equation.outvars
    ]
    assert max(sizes) == 2 * 4 * 64 * 64


# --- hidden states ----------------------------------------------------------------------------------------------------


@DTYPES
def test_cosine_of_a_nearly_equal_student_is_precise(dtype):
    """1 - cos is lost to rounding in float32 below an angle of a thousandth; the loss is half the angle's square."""
    angle = 1e-5
    arrays = np.array([[[np.cos(angle), np.sin(angle)]]]), np.array([[[1.0, 0.0]]])
    value, (slope, _) = run(COSINE, arrays, dtype=dtype)
    np.testing.assert_allclose(value, angle**2 / 2, rtol=1e-5)
    np.testing.assert_allclose(slope[0, 0], [-0.5 * angle**2, angle], rtol=1e-4, atol=1e-9)


def test_cosine_in_float16_neither_overflows_nor_vanishes():
    for size in (6e4, 1e-6):
        arrays = (jnp.full((1, 1, 8), size, jnp.float16), -jnp.full((1, 1, 8), 100.0, jnp.float16))
        np.testing.assert_allclose(losses.hidden_cosine(*arrays), 2, rtol=1e-5)


def test_a_cross_device_mean_needs_no_axis():
    """Tokens are alone: a batch in two halves has the same values."""
    arrays = KL.inputs(((4, 2, 5, 5),) * 2)
    halves = [run(KL, tuple(a[i : i + 2] for a in arrays), where=RAGGED[i : i + 2])[0] for i in (0, 2)]
    np.testing.assert_allclose(np.concatenate(halves), run(KL, arrays, where=RAGGED)[0], rtol=1e-12)


def test_mask_of_pairs_is_refused():
    loss = functools.partial(losses.attention_kl, jnp.zeros((2, 1, 3, 3)), jnp.zeros((2, 1, 3, 3)))
    with pytest.raises(ValueError, match=r"where.*bool\[2, 3\].*bool\[2, 3, 3\]"):
        loss(where=jnp.ones((2, 3, 3), bool))
