"""Noise: batches as a function of seed and step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.data import Loader, Noise
from tests import tiny


def test_batch_has_noise_label_index_and_epoch():
    noise = Noise(6, 5, 3, examples=20, seed=1)
    batch = next(iter(noise))
    assert {name: (x.dtype.name, x.shape) for name, x in batch.items()} == {
        "noise": ("float32", (6, 5)),
        "label": ("int32", (6,)),
        "index": ("int32", (6,)),
        "epoch": ("int32", (6,)),
    }
    assert "label" not in next(iter(Noise(6, 5)))
    assert isinstance(noise, Loader)
    assert (noise.steps_per_epoch, noise.num_examples) == (3, 18)  # the remainder does not fill a batch


def test_draws_are_normal_and_of_all_classes():
    batch = next(iter(Noise(4000, 8, 5)))
    assert abs(float(batch["noise"].mean())) < 0.02
    assert abs(float(batch["noise"].std()) - 1) < 0.02
    counts = np.bincount(batch["label"], minlength=5)
    assert len(counts) == 5
    assert (abs(counts - 800) < 120).all()


def test_no_batch_occurs_twice():
    noise = Noise(4, 3, 2, examples=8)
    seen = [np.asarray(batch["noise"]) for batch, _ in zip(noise, range(6), strict=False)]
    assert len(np.unique(np.concatenate(seen), axis=0)) == 24
    epochs = [int(batch["epoch"][0]) for batch, _ in zip(noise, range(6), strict=False)]
    positions = [batch["index"].tolist() for batch, _ in zip(noise, range(3), strict=False)]
    assert epochs == [0, 0, 1, 1, 2, 2]
    assert positions == [[0, 1, 2, 3], [4, 5, 6, 7], [0, 1, 2, 3]]


def test_batch_depends_on_seed_and_step_only():
    noise, again, other = Noise(4, 3, 2), Noise(4, 3, 2), Noise(4, 3, 2, seed=1)
    tiny.assert_equal(noise.gather(noise.arrays, 7), jax.jit(again.gather)(again.arrays, jnp.int32(7)))
    tiny.assert_equal(noise.gather(noise.arrays, 7, seed=1), other.gather(other.arrays, 7))
    assert (noise.gather(noise.arrays, 7)["noise"] != other.gather(other.arrays, 7)["noise"]).any()
    seeds = jax.vmap(lambda seed: noise.gather(noise.arrays, 7, seed=seed)["noise"])(jnp.arange(2))
    np.testing.assert_array_equal(seeds[1], other.gather(other.arrays, 7)["noise"])


def test_iterator_resumes_from_a_state():
    noise = Noise(4, 3, 2, examples=12)
    first = iter(noise)
    for _ in range(4):
        next(first)
    tiny.assert_equal(next(noise.batches(first.get_state())), next(first))
    assert len(list(Noise(4, 3, examples=12, epochs=2))) == 6


def test_fingerprint_differs_between_settings():
    prints = [Noise(4, 3).fingerprint(), Noise(4, 3, 2).fingerprint(), Noise(4, 3, seed=1).fingerprint()]
    prints += [Noise(4, 5).fingerprint()]
    assert all(one != other for i, one in enumerate(prints) for other in prints[:i])
    assert Noise(4, 3).fingerprint() == prints[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0, "noise_size": 3}, "batch_size: expected at least 1, got 0"),
        ({"batch_size": 2, "noise_size": 0}, "noise_size: expected at least 1, got 0"),
        ({"batch_size": 2, "noise_size": 3, "num_classes": 0}, "num_classes: expected at least 1, got 0"),
        ({"batch_size": 8, "noise_size": 3, "examples": 4}, "4 examples do not fill one batch of 8"),
    ],
)
def test_invalid_arguments_raise(arguments, message):
    with pytest.raises(ValueError, match=message):
        Noise(**arguments)
