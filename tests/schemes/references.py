"""A network, a batch and losses in float64 NumPy, as references for schemes.

Shapes (7 examples of 11 classes, among masked rows) and seeds differ from those in the tests of each scheme. A step of
gradient descent with a learning rate of 1 reveals the gradient.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd import adapters, losses, term

SIZE, CLASSES, INPUTS, HIDDEN = 7, 11, 4, 3
KEEP = np.array([True, False, True, True, True, False, True, True, False, True])
SGD = optax.sgd(1.0)
KEY = jax.random.key(5)
CE = term(losses.cross_entropy, "student/logits", "batch/label")


def kl_term(temperature):
    return term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=temperature)


def _init(scale, key, image):
    first, second = jax.random.split(key)
    return {
        "v": 0.8 * jax.random.normal(first, (INPUTS, HIDDEN)),
        "w": scale * jax.random.normal(second, (HIDDEN, CLASSES)),
    }


def network(scale=1.0):
    """Returns a model with logits of 11 classes and a ``hidden`` of 3 features."""

    def apply(params, image):
        hidden = jnp.tanh(image @ params["v"])
        return {"logits": hidden @ params["w"], "hidden": hidden}

    return adapters.plain(lambda key, image: _init(scale, key, image), apply)


def exit_of(feature=False):
    def apply(params, hidden):
        deeper = hidden @ params["f"]
        return {"logits": deeper @ params["w"], **({"feature": deeper} if feature else {})}

    def init(key, hidden):
        return {
            "f": jax.random.normal(key, (HIDDEN, HIDDEN)),
            "w": jax.random.normal(jax.random.fold_in(key, 1), (HIDDEN, CLASSES)),
        }

    return adapters.plain(init, apply, inputs="feature")


def forward(params, image):
    hidden = np.tanh(np.float64(image) @ params["v"])
    return hidden @ params["w"], hidden


def log_softmax(z):
    z = z - z.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def softmax(z):
    return np.exp(log_softmax(z))


def ce(z, label):
    return -log_softmax(z)[np.arange(len(label)), label].mean()


def kl(target, z, temperature=1.0):
    """``T² KL(target ‖ z)`` of logits."""
    p, q = log_softmax(target / temperature), log_softmax(z / temperature)
    return temperature**2 * (np.exp(p) * (p - q)).sum(-1).mean()


def batch(seed=0):
    """Ten rows, three of which are masked garbage."""
    rng = np.random.default_rng(100 + seed)
    rows = len(KEEP)
    image = rng.normal(size=(3, rows, INPUTS)).astype(np.float32)
    image[:, ~KEEP] = 77.0
    label = rng.integers(0, CLASSES, rows).astype(np.int32)
    label[~KEEP] = 0
    index = np.where(KEEP, rng.permutation(rows), 0).astype(np.int32)
    return {"image": image[0], "pair": image[1], "view": image[2], "label": label, "index": index, "mask": KEEP}


def kept(given):
    return {name: x[KEEP] for name, x in given.items()}


def float64(tree):
    return jax.tree.map(lambda x: np.array(x, np.float64), tree)


def slopes(function, tree, epsilon=1e-6):
    """Computes central differences of a function of a tree."""
    leaves, structure = jax.tree.flatten(tree)
    found = [np.zeros_like(leaf) for leaf in leaves]
    for leaf, slope in zip(leaves, found, strict=True):
        for i in np.ndindex(leaf.shape):
            here = leaf[i]
            leaf[i] = here + epsilon
            above = function(jax.tree.unflatten(structure, leaves))
            leaf[i] = here - epsilon
            slope[i] = (above - function(jax.tree.unflatten(structure, leaves))) / (2 * epsilon)
            leaf[i] = here
    return jax.tree.unflatten(structure, found)


def trained(state):
    return {"student": state.student.params, "loss": state.objective.params}


def assert_trees(actual, expected, rtol, atol):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=rtol, atol=atol, err_msg=jax.tree_util.keystr(path))


def assert_steps(kd, reference, *, steps=2, batch=batch, rtol=2e-4, atol=1e-4, state=None):
    """Checks each step against ``reference(params, held, batch, step)``."""
    state, step = kd.init(KEY, batch()) if state is None else state, jax.jit(kd.step)
    for i in range(steps):
        given, before = kept(batch(i)), float64(trained(state))
        state, metrics = step(state, batch(i))
        held = jax.tree.map(np.copy, before)

        def value(params, held=held, given=given, i=i):
            return reference(params, held, given, i)

        found = metrics["loss"]
        np.testing.assert_allclose(found.sum / found.count, value(before), rtol=rtol, atol=atol)
        gradient = jax.tree.map(np.subtract, before, float64(trained(state)))
        assert_trees(gradient, slopes(value, before), rtol=1e-3, atol=2e-4 + atol)
    return state, metrics


def scores(metrics, prefix=""):
    return {name: float(m.sum / m.count) for name, m in metrics.items() if name.startswith(prefix) and m.count}
