"""CTC decoding against the enumeration of all paths, and against a beam of prefixes in a dictionary."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, models
from tests.models.speech import reference

INF = np.inf


@functools.cache
def compiled(decoder, **options):
    return jax.jit(functools.partial(decoder, **options))


def decode(decoder, logits, where=None, **options):
    """Returns labels as tuples and log-probabilities, of each example, by the library in float64."""
    with jax.enable_x64(True):
        found = compiled(decoder, **options)(jnp.asarray(logits, jnp.float64), where=where)
    labels, mask, log_probs = (np.asarray(x) for x in found)
    assert (labels[~mask] == options.get("blank", 0)).all()
    assert (np.sort(~mask, axis=-1) == ~mask).all(), "labels come first"
    if labels.ndim == 2:
        return [tuple(int(x) for x in row[kept]) for row, kept in zip(labels, mask, strict=True)], log_probs
    pairs = zip(labels, mask, strict=True)
    listed = [[tuple(int(x) for x in row[kept]) for row, kept in zip(*one, strict=True)] for one in pairs]
    return listed, log_probs


def examples(blank=0):
    """Logits of 6 examples, 4 frames, 3 classes: peaked, flat, with excluded classes, and where nothing can occur."""
    rng = np.random.default_rng(blank)
    logits = rng.normal(size=(6, 4, 3)) * np.array([4.0, 1.0, 0.3, 1.0, 1.0, 1.0])[:, None, None]
    logits[3, :, (blank + 1) % 3] = -INF
    logits[4, 1:3, blank] = -INF
    logits[5, 2] = -INF
    return logits


@pytest.mark.parametrize("blank", [1, *(pytest.param(blank, marks=pytest.mark.slow) for blank in (0, 2))])
def test_a_wide_beam_is_the_enumeration_of_all_paths(blank):
    """At most 31 prefixes of two labels; every one of them, in order, with its probability, and none twice."""
    logits = examples(blank)
    labels, log_probs = decode(models.ctc_beam_search, logits, beams=32, n_best=32, blank=blank)
    for example, one in enumerate(logits):
        expected = reference.ctc_of_all_labels(one, blank)
        possible = log_probs[example] > -INF
        found = [label for label, kept in zip(labels[example], possible, strict=True) if kept]
        assert len(set(found)) == len(found) and set(found) == set(expected)
        np.testing.assert_allclose(log_probs[example][possible], [expected[label] for label in found], rtol=1e-9)
        assert (np.diff(log_probs[example][possible]) <= 0).all()
        assert all(label == () for label, kept in zip(labels[example], possible, strict=True) if not kept)
    assert set(labels[3][0]) <= {(blank + 2) % 3} and not np.isfinite(log_probs[5]).any()


def test_log_probabilities_are_those_of_the_loss():
    with jax.enable_x64(True):
        logits = jnp.asarray(examples()[:5])
        found = compiled(models.ctc_beam_search, beams=32, n_best=32, blank=0)(logits, where=None)
        over_list = jax.vmap(lambda labels, mask: losses.ctc(logits, labels, label_where=mask), 1, 1)
        values = np.asarray(jax.jit(over_list)(found.labels, found.mask))
    kept = np.asarray(found.log_probs) > -INF
    np.testing.assert_allclose(-values[kept], np.asarray(found.log_probs)[kept], rtol=1e-9)


OTHERS = [pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((1, 9), (2, 9), (4, 2), (3, 0))]


@pytest.mark.parametrize("beams, length", [(4, 9), *OTHERS])
def test_a_narrow_beam_keeps_what_a_dictionary_keeps(beams, length):
    """Nine frames of four classes, of which many prefixes are left and found again."""
    logits = 1.5 * np.random.default_rng(1).normal(size=(8, 9, 4))
    labels, log_probs = decode(models.ctc_beam_search, logits, beams=beams, n_best=beams, length=length)
    for example, one in enumerate(logits):
        expected = reference.prefix_beam_search(one, beams, length=length)
        expected += [((), -INF)] * (beams - len(expected))
        assert labels[example] == [prefix for prefix, _ in expected]
        np.testing.assert_allclose(log_probs[example], [value for _, value in expected], rtol=1e-9)


@pytest.mark.parametrize("decoder, options", [(models.ctc_greedy, {}), (models.ctc_beam_search, {"beams": 32})])
@pytest.mark.parametrize("garbage", [np.nan, INF, -INF, 1e30])
def test_masked_frames_are_skipped(decoder, options, garbage):
    logits = examples()[:5]
    where = np.insert(np.ones((5, 4), bool), [0, 2, 2, 4], False, axis=1)
    spoiled = np.full((5, 8, 3), garbage)
    spoiled[where] = logits.reshape(-1, 3)
    expected = decode(decoder, logits, **options)
    found = decode(decoder, spoiled, where, **options)
    assert found[0] == expected[0]
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-12)
    labels, log_probs = decode(decoder, spoiled, np.zeros((5, 8), bool), **options)
    assert np.ravel(log_probs).tolist() == [0.0] * 5 and labels in ([()] * 5, [[()]] * 5)


@pytest.mark.parametrize("blank", [0, 2])
def test_greedy_is_the_best_path(blank):
    logits = np.random.default_rng(0).normal(size=(8, 12, 3))
    labels, log_probs = decode(models.ctc_greedy, logits, blank=blank)
    assert labels == [reference.collapse(one.argmax(-1), blank) for one in logits]
    np.testing.assert_allclose(log_probs, reference.log_softmax(logits).max(-1).sum(-1), rtol=1e-12)


def test_a_repetition_needs_a_blank_that_is_not_masked():
    path = np.array([[1, 1, 0, 1], [1, 2, 0, 2]])
    where = np.array([[True, True, False, True]] * 2)
    logits = 9 * np.eye(3)[path]
    assert decode(models.ctc_greedy, logits)[0] == [(1, 1), (1, 2, 2)]
    assert decode(models.ctc_greedy, logits, where)[0] == [(1,), (1, 2)]


def test_half_precision_is_summed_in_float32():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 40, 5)), jnp.bfloat16)
    found, expected = (compiled(models.ctc_greedy)(x, where=None) for x in (logits, logits.astype(jnp.float32)))
    assert found.log_probs.dtype == jnp.float32
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# --- alignment of known labels


def best_path(logits, labels, blank):
    """Returns the best of all paths that are the labels, and its log-probability; None for impossible labels."""
    log_probs, found, best = reference.log_softmax(logits), None, -INF
    for path in itertools.product(range(log_probs.shape[-1]), repeat=len(log_probs)):
        total = sum(log_probs[t, symbol] for t, symbol in enumerate(path))
        if reference.collapse(path, blank) == labels and total > best:
            found, best = path, total
    return found, best


@pytest.mark.parametrize("blank", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_an_alignment_is_the_best_of_all_paths(blank):
    """Labels and frames with gaps; also labels that do not fit, and none at all."""
    one, two = (label for label in range(3) if label != blank)
    wanted = [(one, two), (one, one), (two, one, two), (one, one, one), (), (two,)]
    logits = 2 * np.random.default_rng(0).normal(size=(6, 7, 3))
    frames = np.array([True, True, False, True, True, False, False])[None].repeat(6, 0)
    places = np.array([0, 2, 3])
    labels, mask = np.full((6, 4), 99), np.zeros((6, 4), bool)
    for number, label in enumerate(wanted):
        labels[number, places[: len(label)]], mask[number, places[: len(label)]] = label, True
    with jax.enable_x64(True):
        found = compiled(models.ctc_alignment, blank=blank)(
            jnp.asarray(logits), jnp.asarray(labels), frame_where=frames, label_where=mask
        )
    path, positions, log_probs = (np.asarray(x) for x in found)
    for number, label in enumerate(wanted):
        best, total = best_path(logits[number, frames[number]], label, blank)
        np.testing.assert_allclose(log_probs[number], total, rtol=1e-12)
        kept = path[number, frames[number]]
        assert tuple(kept) == (best or (blank,) * 4)
        at = positions[number]
        assert (path[number, ~frames[number]] == blank).all() and (at[~frames[number]] == -1).all()
        np.testing.assert_array_equal(at >= 0, path[number] != blank)
        np.testing.assert_array_equal(labels[number, at[at >= 0]], path[number, at >= 0])
        assert (np.diff(at[at >= 0]) >= 0).all() and (best is None or len(set(at[at >= 0])) == len(label))
    assert log_probs[3] == -INF and np.isfinite(log_probs[:3]).all()


def test_labels_without_an_alignment():
    logits = jnp.zeros((4, 3, 3))
    found = compiled(models.ctc_alignment)(logits, jnp.array([[1, 0], [1, 3], [-1, 2], [1, 2]]))
    assert (np.asarray(found.log_probs) == -INF).tolist() == [True, True, True, False]
    assert (found.path[:3] == 0).all() and (found.positions[:3] == -1).all()
    none = compiled(models.ctc_alignment)(logits, jnp.zeros((4, 0), int))
    np.testing.assert_allclose(none.log_probs, 3 * np.log(1 / 3), rtol=1e-6)
    with pytest.raises(ValueError, match=r"labels: expected integers \[batch, labels\] with the logits' batch of 4"):
        models.ctc_alignment(logits, jnp.zeros((3, 2), int))
    with pytest.raises(ValueError, match=r"label_where: expected bool\[4, 2\]"):
        models.ctc_alignment(logits, jnp.zeros((4, 2), int), label_where=jnp.ones((4, 3), bool))


@pytest.mark.slow
def test_under_shard_map():
    """The carry of the scan starts from constants, which must vary over the devices as the logits do."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 3)), jnp.float32)
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("devices")

    def both(x):
        greedy = models.ctc_greedy(x)
        return greedy, models.ctc_beam_search(x, beams=4, n_best=2), models.ctc_alignment(x, greedy.labels)

    found = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=split, out_specs=split))(logits)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, jax.jit(both)(logits))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"beams": 0}, "beams: expected at least 1, got 0"),
        ({"beams": 2, "n_best": 3}, "n_best: expected a number from 1 to the 2 beams, got 3"),
        ({"beams": 2, "length": -1}, "length: expected a number of labels, got -1"),
        ({"beams": 2, "blank": 3}, "blank: expected one of the 3 classes from 0, got 3"),
        ({"beams": 2, "where": jnp.ones((2, 4))}, r"where: expected bool\[2, 4\], True for the frames to include"),
    ],
)
def test_invalid_hyperparameters(options, message):
    with pytest.raises(ValueError, match=message):
        models.ctc_beam_search(jnp.zeros((2, 4, 3)), **options)


def test_logits_of_another_shape():
    for logits in (jnp.zeros((4, 3)), jnp.zeros((2, 4, 1)), jnp.zeros((2, 4, 3), int)):
        with pytest.raises(ValueError, match="logits: expected floating point"):
            models.ctc_greedy(logits)
