"""Properties of the losses of sequences: alignments by enumeration, paddings, lists of hypotheses, blanks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses
from tests import references
from tests.loss_runs import cast, reference_gradients, run
from tests.loss_table import BY_NAME

INF = np.inf
CTC, N_BEST, NLL, FRAMES = (BY_NAME[name] for name in ("ctc", "ctc_n_best", "n_best_nll", "frame_kl"))
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])


@functools.cache
def compiled(function, blank):
    def total(logits, labels, masks):
        return function(lambda x: losses.ctc(x, labels, blank=blank, **masks))(logits)

    return jax.jit(total)


def same(loss):
    return loss


def slope(loss):
    return jax.grad(lambda x: loss(x).sum())


def ctc(logits, labels, *, of=same, blank=0, **masks):
    """The loss of the library, or its slope, in float64."""
    with jax.enable_x64(True):
        logits, labels = jnp.asarray(logits, jnp.float64), jnp.asarray(labels, jnp.int32)
        return np.asarray(compiled(of, blank)(logits, labels, masks))


# --- ctc --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blank", [0, 1, 3])
def test_ctc_is_the_sum_over_all_paths(blank):
    """Every path of 5 frames and 4 classes, 1024 of them; labels with and without repetitions."""
    rng = np.random.default_rng(blank)
    logits = 2 * rng.normal(size=(8, 5, 4))
    others = [label for label in range(4) if label != blank]
    labels = np.array([[0, 1, 2], [0, 0, 1], [0, 0, 0], [1, 0, 1], [2, 2, 1], [0, 1, 1], [2, 1, 0], [1, 1, 1]])
    labels = np.array(others)[labels]
    expected = references.ctc_by_enumeration(logits, labels, blank=blank)
    assert np.isfinite(expected).all()
    np.testing.assert_allclose(ctc(logits, labels, blank=blank), expected, rtol=1e-9)
    value, (gradient,) = run(CTC, (logits, labels), cotangent=rng.normal(size=8), hyper={"blank": blank})
    np.testing.assert_allclose(gradient.sum(-1), 0, atol=1e-12, err_msg="a shift of a frame changes nothing")
    np.testing.assert_allclose(value, references.ctc(logits, labels, blank=blank), rtol=1e-9)


def test_the_probabilities_of_all_labelings_sum_to_one():
    """Of two frames and two symbols: nothing, a, b, ab, ba; aa needs a blank in between."""
    logits = np.random.default_rng(0).normal(size=(1, 2, 3))
    one = [ctc(logits, [[symbol]])[0] for symbol in (1, 2)]
    two = [ctc(logits, [pair])[0] for pair in ([1, 2], [2, 1], [1, 1], [2, 2])]
    assert np.isinf(two[2:]).all()
    total = np.exp(-np.array([*one, *two, ctc(logits, np.zeros((1, 0), int))[0]])).sum()
    np.testing.assert_allclose(total, 1, rtol=1e-12)


def padded():
    """Sentences of several lengths, with what they are alone: frames and labels that count."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(5, 6, 4)), rng.integers(1, 4, size=(5, 3))
    frames, counts = np.array([6, 4, 3, 5, 6]), np.array([3, 2, 1, 0, 2])
    labels[1, :2] = 2  # a repetition
    labels[4, 2] = labels[4, 1]  # padding that repeats the last label
    return logits, labels, np.arange(6)[None] < frames[:, None], np.arange(3)[None] < counts[:, None]


@pytest.mark.parametrize("garbage, label", [(np.nan, -1), (INF, 10**6), (-INF, 0), (1e300, -(2**31))])
def test_padding_does_not_change_the_value(garbage, label):
    logits, labels, frame_where, label_where = padded()
    expected = references.ctc(logits, labels, frame_where=frame_where, label_where=label_where)
    spoiled = np.where(frame_where[..., None], logits, garbage), np.where(label_where, labels, label)
    value = ctc(*spoiled, frame_where=frame_where, label_where=label_where)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    gradient = ctc(*spoiled, of=slope, frame_where=frame_where, label_where=label_where)
    np.testing.assert_array_equal(gradient[~frame_where], 0)
    for index in range(5):
        alone = logits[index : index + 1, frame_where[index]], labels[index : index + 1, label_where[index]]
        _, (one,) = run(CTC, alone)
        np.testing.assert_allclose(gradient[index][frame_where[index]], one[0], rtol=1e-8, atol=1e-12)


def test_included_frames_and_labels_need_not_come_first():
    """Padding on the left, or a frame left out in the middle."""
    logits, labels, frame_where, label_where = padded()
    expected = ctc(logits, labels, frame_where=frame_where, label_where=label_where)
    left = ctc(
        np.concatenate([logits[:, 3:4] + 7, np.flip(logits, 1)], axis=1),
        np.flip(labels, 1),
        frame_where=np.concatenate([np.zeros((5, 1), bool), np.flip(frame_where, 1)], axis=1),
        label_where=np.flip(label_where, 1),
    )
    np.testing.assert_allclose(left, expected, rtol=1e-9)  # a sentence backwards has as many alignments
    gap = np.insert(logits, 2, 99.0, axis=1), np.insert(labels, 1, 1, axis=1)
    frames, counts = (np.insert(mask, at, False, axis=1) for mask, at in ((frame_where, 2), (label_where, 1)))
    np.testing.assert_allclose(ctc(*gap, frame_where=frames, label_where=counts), expected, rtol=1e-9)


def test_zero_frames_align_with_zero_labels_only():
    logits, labels, *_ = padded()
    none = np.zeros((5, 6), bool)
    np.testing.assert_array_equal(ctc(logits, labels, frame_where=none), INF)
    np.testing.assert_array_equal(ctc(logits, labels, frame_where=none, label_where=np.zeros((5, 3), bool)), 0)


@DTYPES
def test_labels_without_an_alignment(dtype):
    """Infinite, with a gradient of 0, beside others; optax itself has some 1e5 there."""
    logits = np.random.default_rng(0).normal(size=(4, 3, 4))
    labels = np.array([[1, 2], [1, 1], [3, 3], [2, 3]])
    value, (gradient,) = run(CTC, (logits[:, :2], labels), dtype=dtype)
    assert list(np.isinf(value)) == [False, True, True, False]
    np.testing.assert_array_equal(gradient[1:3], 0)
    assert (gradient[[0, 3]] != 0).all()
    paddings = np.zeros((4, 2), np.float32)
    plain = optax.ctc_loss(jnp.asarray(logits[:, :2], jnp.float32), paddings, labels, paddings)
    assert (np.asarray(plain)[1:3] > 9e4).all() and np.isfinite(plain).all()
    np.testing.assert_allclose(value[[0, 3]], np.asarray(plain)[[0, 3]], rtol=1e-5)
    kept, (slopes,) = run(CTC, (logits[:, :2], labels), where=np.isfinite(value), dtype=dtype)
    np.testing.assert_array_equal(kept[1:3], 0)
    assert np.isfinite(slopes).all()


@DTYPES
def test_unlikely_labels_are_not_cut_off(dtype):
    """Ten confident frames that are wrong cost 2e5, twice what optax by itself takes for log 0."""
    logits = np.full((1, 10, 3), -1e4)
    logits[..., 0] = 1e4
    labels = np.array([[1] * 5 + [2] * 5])
    labels[0, 1::2] = 2
    labels[0, ::2] = 1
    value, (gradient,) = run(CTC, (logits, labels), dtype=dtype)
    np.testing.assert_allclose(value, 2e5, rtol=1e-6)
    np.testing.assert_allclose(gradient[..., 0], 1, rtol=1e-5)


@DTYPES
def test_an_excluded_class(dtype):
    """-inf at a class that no alignment needs, in every frame or in one, is no class; optax itself has NaN."""
    logits = np.random.default_rng(0).normal(size=(2, 4, 4))
    labels = np.array([[1, 2], [2, 2]])
    excluded = logits.copy()
    excluded[..., 3] = -INF
    value, (gradient,) = run(CTC, (excluded, labels), dtype=dtype)
    expected, (slope,) = run(CTC, (logits[..., :3], labels), dtype=dtype)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, np.pad(slope, ((0, 0), (0, 0), (0, 1))), rtol=1e-5, atol=1e-7)
    first = logits.copy()
    first[:, 0, 1:] = -INF  # the first frame is blank
    value, (gradient,) = run(CTC, (first, labels), dtype=dtype)
    expected, (slope,) = run(CTC, (logits[:, 1:], labels), dtype=dtype)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[:, 1:], slope, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient[:, 0], 0, atol=1e-7)


def test_a_frame_without_a_class_has_no_path():
    logits = np.random.default_rng(0).normal(size=(2, 4, 4))
    logits[0, 1] = -INF
    value, (gradient,) = run(CTC, (logits, np.array([[1, 2], [1, 2]])))
    assert list(np.isinf(value)) == [True, False]
    assert np.isfinite(gradient).all()


def test_invalid_label_is_nan_unless_masked():
    logits = np.random.default_rng(0).normal(size=(4, 4, 3))
    labels = np.array([[1, 2], [1, 3], [-1, 2], [1, 2**31 - 1]])
    assert list(np.isnan(ctc(logits, labels))) == [False, True, True, True]
    label_where = np.array([[True, True], [True, False], [False, True], [True, False]])
    assert np.isfinite(ctc(logits, labels, label_where=label_where)).all()
    assert np.isfinite(ctc(logits, labels, where=np.array([True, False, False, False]))).all()


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.uint32], ids=["int8", "uint8", "uint32"])
def test_every_integer_type_is_a_label(dtype):
    logits = np.random.default_rng(0).normal(size=(2, 4, 300))
    labels = np.array([[5, 100], [0, 7]]) + 1
    value = losses.ctc(jnp.asarray(logits, jnp.float32), jnp.asarray(labels, dtype))
    np.testing.assert_allclose(value, references.ctc(logits, labels), rtol=1e-5)


def test_recognizer_learns_its_labels():
    logits, labels, frame_where, label_where = padded()
    options = {"frame_where": jnp.asarray(frame_where), "label_where": jnp.asarray(label_where)}
    step = jax.jit(lambda x: x - jax.grad(lambda x: losses.ctc(x, jnp.asarray(labels), **options).sum())(x))
    learned = jnp.asarray(logits, jnp.float32)
    for _ in range(200):
        learned = step(learned)
    assert (losses.ctc(learned, jnp.asarray(labels), **options) < 0.2).all()


@pytest.mark.parametrize("blank", [-1, 4])
def test_blank_that_is_not_a_class(blank):
    logits, labels = jnp.zeros((2, 3, 4)), jnp.ones((2, 1), int)
    for call in (
        lambda: losses.ctc(logits, labels, blank=blank),
        lambda: losses.ctc_n_best(logits, labels[:, None], jnp.zeros((2, 1)), blank=blank),
        lambda: losses.frame_kl(logits, logits, blank=blank),
    ):
        with pytest.raises(ValueError, match=rf"blank.*4 classes.*{blank}"):
            call()


@pytest.mark.parametrize("name, shape", [("frame_where", (2, 4)), ("frame_where", (2,)), ("label_where", (2, 2))])
def test_paddings_of_another_shape(name, shape):
    with pytest.raises(ValueError, match=rf"{name}.*expected bool.*got bool\[{', '.join(map(str, shape))}\]"):
        losses.ctc(jnp.zeros((2, 3, 4)), jnp.ones((2, 1), int), **{name: jnp.ones(shape, bool)})


def test_padding_of_floats_is_refused():
    """optax says 1.0 where padding is; taken for a mask, that would be the opposite."""
    with pytest.raises(ValueError, match=r"frame_where.*True for the entries to include.*float32"):
        losses.ctc(jnp.zeros((2, 3, 4)), jnp.ones((2, 1), int), frame_where=jnp.zeros((2, 3)))


def test_labels_that_are_not_integers():
    with pytest.raises(ValueError, match=r"labels.*integer.*float32"):
        losses.ctc(jnp.zeros((2, 3, 4)), jnp.ones((2, 1)))
    with pytest.raises(ValueError, match=r"hypotheses.*integer.*float32"):
        losses.ctc_n_best(jnp.zeros((2, 3, 4)), jnp.ones((2, 1, 1)), jnp.zeros((2, 1)))


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("row", [CTC, N_BEST], ids=str)
def test_under_shard_map(row, check_vma):
    """The recursion over frames starts from constants, which must vary over the devices as the logits do."""
    arrays = [array[:4] for array in cast(row.inputs(), np.float32)]

    def both(logits, *rest):
        return row.loss(logits, *rest), jax.grad(lambda x: row.loss(x, *rest).sum())(logits)

    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("devices")
    mapped = jax.shard_map(both, mesh=mesh, in_specs=(split,) * len(arrays), out_specs=split, check_vma=check_vma)
    for result, expected in zip(jax.jit(mapped)(*arrays), jax.jit(both)(*arrays), strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


# --- lists of hypotheses ----------------------------------------------------------------------------------------------


def test_one_hypothesis_is_ctc():
    logits, labels = CTC.inputs()
    value, gradients = run(N_BEST, (logits, labels[:, None], np.full((5, 1), -3.0)))
    expected, slopes = run(CTC, (logits, labels))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(gradients[0], slopes[0], rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(gradients[1], 0, atol=1e-12)


def test_the_list_is_a_weighted_sum_of_ctc_s():
    logits, hypotheses, log_posteriors = N_BEST.inputs()
    weights = np.exp(log_posteriors) / np.exp(log_posteriors).sum(1, keepdims=True)
    expected = sum(weights[:, n] * ctc(logits, hypotheses[:, n]) for n in range(3))
    np.testing.assert_allclose(run(N_BEST, (logits, hypotheses, log_posteriors))[0], expected, rtol=1e-9)


def test_hypotheses_of_several_lengths():
    logits, labels, frame_where, label_where = padded()
    hypotheses = np.stack([labels, np.full_like(labels, 3), np.roll(labels, 1, 0)], axis=1)
    counts = np.stack([label_where, np.arange(3)[None].repeat(5, 0) < 1, np.roll(label_where, 1, 0)], axis=1)
    log_posteriors = np.log([[0.5, 0.25, 0.25]] * 5)
    log_posteriors[2, 1:] = -INF  # absent, as those of too many labels for its frames have to be
    options = {"frame_where": frame_where, "label_where": counts}
    expected = references.ctc_n_best(logits, hypotheses, log_posteriors, **options)
    assert np.isfinite(expected).all()
    spoiled = np.where(counts & np.isfinite(log_posteriors)[..., None], hypotheses, -5)
    with jax.enable_x64(True):
        arrays = jnp.asarray(logits), jnp.asarray(spoiled), jnp.asarray(log_posteriors)
        value = jax.jit(losses.ctc_n_best)(*arrays, **options)
        gradients = jax.grad(lambda x, p: losses.ctc_n_best(x, arrays[1], p, **options).sum(), argnums=(0, 1))
        slopes = gradients(arrays[0], arrays[2])
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    assert all(np.isfinite(slope).all() for slope in slopes)


@DTYPES
def test_a_hypothesis_without_an_alignment(dtype):
    """Infinite if it has a weight, with the gradient of the others; nothing if it is absent."""
    logits = np.random.default_rng(0).normal(size=(2, 2, 3))
    hypotheses = np.array([[[1, 2], [1, 1]]] * 2)
    log_posteriors = np.array([[0.0, 0.0], [0.0, -INF]])
    value, gradients = run(N_BEST, (logits, hypotheses, log_posteriors), dtype=dtype)
    assert value[0] == INF
    np.testing.assert_allclose(value[1], run(CTC, (logits[1:], hypotheses[1:, 0]))[0], rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    _, (slope,) = run(CTC, (logits, hypotheses[:, 0]), dtype=dtype)
    np.testing.assert_allclose(gradients[0], np.array([0.5, 1.0])[:, None, None] * slope, rtol=1e-5, atol=1e-7)


def test_single_hypothesis_is_the_mode():
    """Kim & Rush's approximation: with one sequence, the posterior does not matter."""
    log_probs = -np.abs(NLL.inputs()[0])[:, :1]
    for posterior in (-100.0, 0.0, 1e4):
        np.testing.assert_allclose(run(NLL, (log_probs, np.full((5, 1), posterior)))[0], -log_probs[:, 0])


def test_n_best_is_ctc_n_best_of_its_probabilities():
    logits, hypotheses, log_posteriors = N_BEST.inputs()
    log_probs = -np.stack([ctc(logits, hypotheses[:, n]) for n in range(3)], axis=1)
    expected = run(N_BEST, (logits, hypotheses, log_posteriors))[0]
    np.testing.assert_allclose(run(NLL, (log_probs, log_posteriors))[0], expected, rtol=1e-9)


# --- frames -----------------------------------------------------------------------------------------------------------


def test_blank_frames_are_removed():
    student, teacher = FRAMES.inputs()
    plain = references.soft_target_kl(student, teacher, temperature=1.0)
    blank = teacher.argmax(-1) == 0
    assert 0 < blank.sum() < blank.size
    value, gradients = run(FRAMES, (student, teacher))
    np.testing.assert_allclose(value, np.where(blank, 0, plain), rtol=1e-9)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[blank], 0)
    np.testing.assert_allclose(run(FRAMES, (student, teacher), hyper={"blank_weight": 1.0})[0], plain, rtol=1e-9)
    weighted = run(FRAMES, (student, teacher), hyper={"blank_weight": 0.3})[0]
    np.testing.assert_allclose(weighted, np.where(blank, 0.3, 1) * plain, rtol=1e-9)


def test_blank_frames_are_those_of_the_teacher():
    teacher, student = np.log([[[0.2, 0.8]]]), np.log([[[0.9, 0.1]]])
    assert run(FRAMES, (student, teacher))[0] > 0
    assert run(FRAMES, (teacher, student))[0] == 0


def test_a_tie_with_the_blank_goes_to_the_first_class():
    tied = np.zeros((1, 1, 3))
    student = np.array([[[0.0, 1.0, 2.0]]])
    assert run(FRAMES, (student, tied))[0] == 0
    assert run(FRAMES, (student, tied), hyper={"blank": 1})[0] > 0


@DTYPES
def test_removed_frame_may_be_infinite(dtype):
    """0 · inf is not the weight's meaning."""
    student = np.array([[[-INF, 0.0], [0.0, -INF]]])
    teacher = np.log([[[0.6, 0.4], [0.4, 0.6]]])
    value, gradients = run(FRAMES, (student, teacher), dtype=dtype)
    np.testing.assert_array_equal(value, [[0.0, INF]])
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_temperature_scales_by_its_square():
    student, teacher = FRAMES.inputs()
    hyper = {"temperature": 3.0, "blank_weight": 1.0}
    expected = references.soft_target_kl(student, teacher, temperature=3.0)
    np.testing.assert_allclose(run(FRAMES, (student, teacher), hyper=hyper)[0], expected, rtol=1e-9)


def test_a_learned_temperature_and_weight():
    student, teacher = (jnp.asarray(array, jnp.float32) for array in FRAMES.inputs())
    value = jax.jit(lambda t, w: losses.frame_kl(student, teacher, temperature=t, blank_weight=w))(2.0, 0.5)
    np.testing.assert_allclose(value, losses.frame_kl(student, teacher, temperature=2.0, blank_weight=0.5), rtol=1e-5)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": np.nan}, {"blank_weight": -0.5}], ids=str)
def test_invalid_hyperparameters(options):
    (name,) = options
    with pytest.raises(ValueError, match=rf"{name}: expected .*{options[name]}"):
        losses.frame_kl(jnp.zeros((1, 2, 3)), jnp.zeros((1, 2, 3)), **options)


def test_the_gradients_of_padded_examples_agree_with_difference_quotients():
    """With hypotheses that are absent, of every argument."""
    logits, hypotheses, log_posteriors = N_BEST.inputs()
    log_posteriors[1, 2], log_posteriors[3] = -INF, -INF
    arrays, cotangent = (logits, hypotheses, log_posteriors), np.random.default_rng(1).normal(size=5)
    _, gradients = run(N_BEST, arrays, cotangent=cotangent)
    for gradient, expected in zip(gradients, reference_gradients(N_BEST, arrays, cotangent), strict=True):
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-8)
