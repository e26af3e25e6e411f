"""Mixtures of images: the formulas, the labels of both, masks, and draws that depend on the example."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd import data, losses

mixup = jax.jit(data.mixup, static_argnames=("alpha", "classes"))
cutmix = jax.jit(data.cutmix, static_argnames=("alpha", "classes"))
COUNT = 6


def batch_of(count=COUNT, epoch=0, **entries):
    generator = np.random.default_rng(0)
    return {
        "image": generator.integers(0, 256, (count, 5, 4, 2)).astype(np.uint8),
        "label": np.arange(count) % 3,
        "index": np.arange(count) + 10,
        "epoch": np.full(count, epoch),
        **entries,
    }


def test_mixup_is_a_mixture_with_the_next_example():
    batch = batch_of()
    found = mixup(batch, seed=0, classes=3)
    share = np.asarray(found["share"], np.float64)
    assert len(set(share)) == COUNT and (share >= 0).all() and (share <= 1).all()
    weight, following = share[:, None, None, None], np.roll(np.arange(COUNT), -1)
    expected = weight * batch["image"] + (1 - weight) * batch["image"][following]
    np.testing.assert_allclose(found["image"], expected, rtol=1e-5)
    assert found["partner_label"].tolist() == batch["label"][following].tolist()
    one_hot = np.eye(3)[batch["label"]]
    np.testing.assert_allclose(
        found["soft_label"], share[:, None] * one_hot + (1 - share[:, None]) * one_hot[following], rtol=1e-5
    )
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(COUNT, 3)), jnp.float32)
    ours, theirs = (losses.cross_entropy(logits, jnp.asarray(found[name])) for name in ("label", "partner_label"))
    expected = share * ours + (1 - share) * theirs
    np.testing.assert_allclose(losses.soft_cross_entropy(logits, found["soft_label"]), expected, rtol=1e-5)


def test_cutmix_replaces_one_rectangle():
    batch = batch_of()
    found, sizes = cutmix(batch, seed=3, classes=3), set()
    following = np.roll(np.arange(COUNT), -1)
    for row in range(COUNT):
        image, own, other = (np.asarray(x) for x in (found["image"][row], batch["image"][row], batch["image"]))
        assert image.dtype == np.uint8
        cut = (image != own).any(-1)
        rows, columns = np.flatnonzero(cut.any(1)), np.flatnonzero(cut.any(0))
        box = np.zeros_like(cut)
        if len(rows):
            box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        np.testing.assert_array_equal(image, np.where(box[..., None], other[following[row]], own))
        np.testing.assert_allclose(found["share"][row], 1 - box.mean(), atol=1e-6)
        sizes.add(int(box.sum()))
    assert len(sizes) > 2
    soft = np.asarray(found["soft_label"])
    np.testing.assert_allclose(soft.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(
        soft[np.arange(COUNT), batch["label"]], found["share"], rtol=1e-6
    )  # neighbors differ in their labels


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_masked_examples_are_mixed_with_none(mix):
    mask = np.array([True, False, True, False, False, True])
    found = mix(batch_of(mask=mask), seed=0)
    kept = {name: value[mask] for name, value in batch_of().items()}
    alone = mix(kept, seed=0)
    for name in ("image", "share", "partner_label"):
        np.testing.assert_allclose(np.asarray(found[name])[mask], alone[name], rtol=1e-6)
    np.testing.assert_allclose(np.asarray(found["image"])[~mask], batch_of()["image"][~mask], rtol=1e-5)


@pytest.mark.parametrize("mask", [None, [1, 0, 0, 0, 1, 1, 0, 1], [0, 0, 0, 1, 0, 0, 0, 0]], ids=["all", "some", "one"])
def test_mixtures_are_those_of_the_batch_of_all_devices(mask):
    batch = batch_of(8) if mask is None else batch_of(8, mask=np.array(mask, bool))
    parts = {name: value.reshape(4, 2, *value.shape[1:]) for name, value in batch.items()}
    for mix in (data.mixup, data.cutmix):
        mix = functools.partial(mix, seed=0, classes=3)
        whole = jax.jit(mix)(batch)
        found = jax.pmap(mix, axis_name=jaxkd.DATA_AXIS, devices=jax.devices()[:4])(parts)
        for name in ("image", "share", "partner_label", "soft_label"):
            np.testing.assert_allclose(np.reshape(found[name], np.shape(whole[name])), whole[name], rtol=1e-6)


def test_shares_depend_on_the_example_and_the_epoch():
    whole = mixup(batch_of(), seed=0)["share"]
    order = np.array([3, 1, 0, 2, 5, 4])
    moved = mixup({name: value[order] for name, value in batch_of().items()}, seed=0)["share"]
    np.testing.assert_array_equal(moved, whole[order])
    for other in (mixup(batch_of(epoch=1), seed=0), mixup(batch_of(), seed=1)):
        assert not np.isclose(other["share"], whole).any()


@pytest.mark.slow
def test_the_distribution_of_the_shares():
    many = {"image": np.zeros((4000, 1, 1, 1), np.float32), "index": np.arange(4000), "epoch": np.zeros(4000, int)}
    for alpha in (1.0, 0.2):
        share = np.asarray(mixup(many, seed=0, alpha=alpha)["share"])
        # Beta(α, α) has the variance 1 / (4 (2 α + 1)).
        np.testing.assert_allclose([share.mean(), share.var()], [0.5, 0.25 / (2 * alpha + 1)], atol=0.02)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"alpha: expected a positive number"):
        data.mixup(batch_of(), seed=0, alpha=0.0)
    unlabeled = {name: value for name, value in batch_of().items() if name != "label"}
    with pytest.raises(ValueError, match=r"classes: expected None, or a batch with the entry 'label', got 3"):
        data.mixup(unlabeled, seed=0, classes=3)
    with pytest.raises(ValueError, match=r"need \['index', 'epoch'\]"):
        data.cutmix({"image": np.zeros((2, 4, 4, 1))}, seed=0)
