"""Buckets of lengths and masked tokens: functions of the seed, the epoch and the example."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import data
from jaxkd.data import text

BYTES = text.ByteTokenizer(("cls", "sep", "mask", "pad"))


def arrays(examples=37, seed=0):
    rng = np.random.default_rng(seed)
    texts = ["".join(rng.choice(list("abc"), size)) for size in rng.integers(1, 30, examples)]
    return text.sentences(texts, BYTES, label=rng.integers(0, 3, examples))


def epoch_of(buckets, epoch):
    return [buckets.batch(epoch * buckets.steps_per_epoch + i) for i in range(buckets.steps_per_epoch)]


@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_has_every_example_once_and_whole(shuffle):
    given = arrays()
    buckets = text.Buckets(given, 4, seed=3, lengths=(8, 16, 24, 40), shuffle=shuffle)
    orders = []
    for epoch in range(2):
        seen = []
        for batch in epoch_of(buckets, epoch):
            size = batch["tokens"].shape[1]
            assert batch["tokens"].shape == batch["mask"].shape == (4, size) and size in buckets.lengths
            assert (batch["epoch"] == epoch).all() and batch["label"].shape == (4,)
            for i in np.flatnonzero(batch["mask"].any(axis=1)):
                row = batch["index"][i]
                np.testing.assert_array_equal(
                    batch["tokens"][i][batch["mask"][i]], given["tokens"][row][given["mask"][row]]
                )
                assert batch["label"][i] == given["label"][row]
                needed = given["mask"][row].sum()
                assert size == min(length for length in (8, 16, 24, 40) if length >= needed)
                seen.append(row)
        assert sorted(seen) == list(range(37))
        orders.append([int(row) for row in seen])
    assert (orders[0] == orders[1]) is not shuffle
    again = text.Buckets(given, 4, seed=3, lengths=(8, 16, 24, 40), shuffle=shuffle)
    for one, other in zip(epoch_of(buckets, 1), epoch_of(again, 1), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_an_iterator_resumes_anywhere_and_ends():
    buckets = text.Buckets(arrays(), 8, lengths=(16, 32), epochs=2)
    batches = buckets.batches()
    whole = list(batches)
    assert len(whole) == 2 * buckets.steps_per_epoch and batches.get_state() == {"step": len(whole)}
    resumed = buckets.batches({"step": 3})
    jax.tree.map(np.testing.assert_array_equal, next(resumed), whole[3])
    resumed.set_state({"step": 1})
    jax.tree.map(np.testing.assert_array_equal, next(resumed), whole[1])
    assert isinstance(buckets, data.Loader)
    other = text.Buckets(arrays(seed=1), 8, lengths=(16, 32), epochs=2)
    assert buckets.fingerprint() != other.fingerprint()


def test_sets_that_fit_no_bucket_are_refused():
    with pytest.raises(ValueError, match=r"the largest at least that of the longest example, 31, got \[16\]"):
        text.Buckets(arrays(), 4, lengths=(16,))
    with pytest.raises(ValueError, match=r"mask: expected bool \[examples, length\], got none"):
        text.Buckets({"tokens": np.zeros((2, 3), int)}, 1, lengths=(4,))


# --- masked language models -----------------------------------------------------------------------------------------


def batch_of(examples=64, length=60):
    texts = ["x" * (length - 2 - i % 30) for i in range(examples)]
    return {**text.sentences(texts, BYTES), "epoch": np.zeros(examples, np.int32)}


@pytest.fixture(scope="module")
def corrupt():
    return jax.jit(functools.partial(text.mask_tokens, tokenizer=BYTES, seed=0))


def test_masked_tokens_are_a_share_of_the_ordinary_ones(corrupt):
    batch = batch_of()
    found = jax.tree.map(np.asarray, corrupt(batch))
    ordinary = batch["mask"] & (batch["tokens"] < 256)
    selected, tokens = found["selected"], found["tokens"]
    assert not (selected & ~ordinary).any()
    expected = np.maximum(1, np.round(0.15 * ordinary.sum(axis=1)))
    np.testing.assert_array_equal(selected.sum(axis=1), expected)
    np.testing.assert_array_equal(found["label"], np.where(selected, batch["tokens"], -100))
    np.testing.assert_array_equal(tokens[~selected], batch["tokens"][~selected])
    np.testing.assert_array_equal(found["mask"], batch["mask"])


def test_eighty_ten_ten(corrupt):
    batch = batch_of()
    kinds = []
    for epoch in range(40):
        found = jax.tree.map(np.asarray, corrupt({**batch, "epoch": np.full(64, epoch, np.int32)}))
        new, old = found["tokens"][found["selected"]], batch["tokens"][found["selected"]]
        kinds += [np.where(new == BYTES.specials["mask"], 0, np.where(new == old, 2, 1))]
    kinds = np.concatenate(kinds)
    # A replacement is the mask, or the old token, with probability 1/260 each.
    for kind, share in enumerate((0.8 + 0.1 / 260, 0.1 - 0.2 / 260, 0.1 + 0.1 / 260)):
        assert abs((kinds == kind).mean() - share) < 4 * np.sqrt(share * (1 - share) / len(kinds))


def test_corruption_depends_on_the_example_and_the_epoch_only(corrupt):
    batch = batch_of()
    whole = corrupt(batch)
    part = jax.tree.map(lambda x: x[[5, 3]], batch)
    alone = text.mask_tokens(part, tokenizer=BYTES, seed=0)
    for name in ("tokens", "label", "selected"):
        np.testing.assert_array_equal(alone[name], whole[name][np.array([5, 3])])
    later = corrupt({**batch, "epoch": np.ones(64, np.int32)})
    assert not np.array_equal(later["selected"], whole["selected"])
    other = text.mask_tokens(part, tokenizer=BYTES, seed=1)
    assert not np.array_equal(other["selected"], alone["selected"])


def test_shortest_and_empty_examples():
    batch = {**text.sentences(["x", "", "xx"], BYTES), "epoch": np.zeros(3, np.int32)}
    assert text.mask_tokens(batch, tokenizer=BYTES, seed=0)["selected"].sum(axis=1).tolist() == [1, 0, 1]
    none = text.mask_tokens({**batch, "mask": np.zeros(3, bool)}, tokenizer=BYTES, seed=0)
    assert not none["selected"].any()


def test_a_step_of_a_masked_language_model():
    model = jaxkd.adapters.plain(
        lambda key, tokens: jnp.zeros((BYTES.vocabulary, BYTES.vocabulary)),
        lambda w, tokens: w[tokens],
        inputs="tokens",
    )
    objective = jaxkd.term(jaxkd.losses.cross_entropy, "student/logits", "batch/label", where="batch/selected")
    kd = jaxkd.distill(model, jaxkd.teachers.none(), objective, optimizer=optax.sgd(0.1))
    kd = jaxkd.distillers.preprocess(kd, train_transform=functools.partial(text.mask_tokens, seed=0, tokenizer=BYTES))
    batch = batch_of(4, 12)
    _, found = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    assert jaxkd.metrics.compute(found)["loss"] == pytest.approx(np.log(BYTES.vocabulary), rel=1e-5)


def test_batches_that_cannot_be_masked_are_refused():
    batch = batch_of(2, 5)
    with pytest.raises(ValueError, match=r"expected a special id 'mask', got \['bos', 'eos', 'pad'\]"):
        text.mask_tokens(batch, seed=0, tokenizer=text.ByteTokenizer())
    with pytest.raises(ValueError, match="mask_ratio: expected a share from 0 to 1, got 15"):
        text.mask_tokens(batch, seed=0, tokenizer=BYTES, mask_ratio=15)
    with pytest.raises(ValueError, match=r"expected integers \[batch, tokens\] as 'tokens', got 'index'"):
        text.mask_tokens({"index": jnp.arange(2)}, seed=0, tokenizer=BYTES)
