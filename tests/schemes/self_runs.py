"""Helpers for tests of self-distillation: runs, pmap, a float64 network."""

import jax
import numpy as np

import jaxkd
from tests import tiny


def run(kd, batches, step=None, seed=1):
    """Returns the state and the metrics after these batches."""
    state, found = kd.init(jax.random.key(seed), batches[0]), []
    step = step or jax.jit(kd.step)
    for batch in batches:
        state, metrics = step(state, batch)
        found.append(tiny.numbers(metrics))
    return state, found


def placed(kd):
    """Places on four devices, with BatchNorm statistics of the whole batch."""
    return jaxkd.parallel.pmap(kd, jax.devices()[:4], replicas=1)


def masked(batch, extra, seed=9):
    """Inserts masked garbage between the examples of a batch."""
    size = len(batch["label"])
    keep = np.sort(np.random.default_rng(seed).permutation(size + extra)[:size])
    found = {"mask": np.zeros(size + extra, bool)}
    found["mask"][keep] = True
    for name, x in batch.items():
        filled = np.full((size + extra, *x.shape[1:]), 50 if x.dtype.kind == "f" else 0, x.dtype)
        filled[keep] = x
        found[name] = filled
    return found


def assert_placed(kd, batches, expected, metrics):
    """Asserts that masked, padded batches on four devices equal `jax.jit`."""
    state, found = run(kd, [masked(batch, 3) for batch in batches], placed(kd))
    tiny.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(found, metrics, strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            np.testing.assert_allclose(value, other[name], rtol=1e-4, atol=1e-5, err_msg=name)


def forward(params, image):
    """Computes logits and pooled feature of `tests.tiny.student` in float64."""
    features = np.tanh(np.float64(image) @ params["first"])
    vector = features.mean(axis=(1, 2))
    return vector @ params["second"], vector


def log_softmax(z):
    z = z - z.max(axis=-1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=-1, keepdims=True))


def cross_entropy(logits, label):
    return -log_softmax(logits)[np.arange(len(label)), label].mean()


def kl(target, logits, temperature):
    p, q = log_softmax(target / temperature), log_softmax(logits / temperature)
    return temperature**2 * (np.exp(p) * (p - q)).sum(axis=1).mean()


def double(params):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), params)


def assert_slopes(loss, params, gradient, *, rtol=2e-4):
    """Checks a gradient by finite differences along random directions."""
    rng = np.random.default_rng(0)
    for _ in range(4):
        direction = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
        ahead, behind = (loss(jax.tree.map(lambda x, d, e=e: x + e * d, params, direction)) for e in (1e-5, -1e-5))
        expected = (ahead - behind) / 2e-5
        found = sum(np.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=1e-6)
