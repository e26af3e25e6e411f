"""Models of images that read clips."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters, wrappers


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        return {"map": nn.BatchNorm(use_running_average=not train)(nn.Dense(3)(x))}


MODEL = adapters.linen(Net())
CLIPS = np.float32(np.random.default_rng(0).normal(size=(2, 3, 4, 4, 2)))


def applied(model, batch, variables):
    return model.apply(variables, batch, key=jax.random.key(1), train=True)


def test_frames_are_the_examples_of_the_model():
    model, images = wrappers.by_frame(MODEL), {"image": CLIPS.reshape(6, 4, 4, 2)}
    variables = model.init(jax.random.key(0), {"image": CLIPS, "label": np.zeros(2)})
    found, state = applied(model, {"image": CLIPS, "label": np.zeros(2)}, variables)
    expected, other = applied(MODEL, images, variables)
    np.testing.assert_array_equal(found["map"].reshape(6, 4, 4, 3), expected["map"])
    jax.tree.map(np.testing.assert_array_equal, state, other)


@pytest.mark.parametrize("mask", [[True, False], [[True, True, False], [False, False, True]]])
def test_masked_frames_are_not_in_the_statistics(mask):
    mask, model = np.array(mask), wrappers.by_frame(MODEL)
    variables = model.init(jax.random.key(0), {"image": CLIPS})
    kept = np.broadcast_to(mask.reshape(2, -1), (2, 3))
    clips = np.where(kept[:, :, None, None, None], CLIPS, 1e3)
    found, state = applied(model, {"image": jnp.array(clips), "mask": jnp.array(mask)}, variables)
    expected, other = applied(MODEL, {"image": jnp.array(CLIPS[kept])}, variables)
    np.testing.assert_allclose(np.asarray(found["map"])[kept], expected["map"], atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state, other)


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"by_frame, image: expected clips \[batch, frames"):
        wrappers.by_frame(MODEL).init(jax.random.key(0), {"image": jnp.zeros((2, 3))})
    with pytest.raises(ValueError, match="by_frame"):
        wrappers.by_frame(MODEL).init(jax.random.key(0), {"frames": jnp.zeros((2, 3, 4))})
