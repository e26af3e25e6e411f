"""Reference layers in NumPy and float64, for the values of objectives."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import Context


def f64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def dense(params, x):
    return x @ params["kernel"] + params.get("bias", 0)


def conv(params, x):
    kernel = params["kernel"]
    size, (_, height, width, _) = kernel.shape[0], x.shape
    half = size // 2
    padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    shifts = [(i, j) for i in range(size) for j in range(size)]
    return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in shifts) + params.get("bias", 0)


def relu(x, slope=0.0):
    return np.where(x > 0, x, slope * x)


def batch_norm(params, x):
    axes = tuple(range(x.ndim - 1))
    return (x - x.mean(axes)) / np.sqrt(x.var(axes) + 1e-5) * params["scale"] + params["bias"]


def connector(params, x):
    return batch_norm(params["norm"], x @ params["kernel"])


def pool(x, height, width):
    """Averages windows of equal size."""
    batch, h, w, channels = x.shape
    return x.reshape(batch, height, h // height, width, w // width, channels).mean((2, 4))


def context(student, teacher, **batch):
    """A context with random features of the shapes ``{"name": shape}`` of either network."""
    rng = np.random.default_rng(3)
    draw = lambda shapes: {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}  # noqa: E731
    return Context(draw(student), draw(teacher), batch, jnp.int32(0))


def made(objective, given, seed=1):
    """The objective's variables with random offsets, since initial zeros would hide errors."""
    variables = objective.init(jax.random.key(seed), jax.eval_shape(lambda: given))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.2 * np.abs(rng.normal(size=x.shape)).astype(np.float32), variables)
