"""Helpers for tests of continual learning: three tasks of six classes, runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from jaxkd import data
from jaxkd.data import _tasks as data_tasks

TASKS = ((4, 1), (0, 5), (2, 3))
STEPS = (2, 3, 4)
SGD = optax.sgd(0.5, momentum=0.9)


def network(width):
    def init(key, image):
        first, second = jax.random.split(key)
        return {
            "first": 0.3 * jax.random.normal(first, (image[0].size, width)),
            "second": 0.5 * jax.random.normal(second, (width, 6)),
        }

    def apply(params, image):
        hidden = jnp.tanh(image.reshape(image.shape[0], -1) @ params["first"])
        return {"logits": hidden @ params["second"], "vector": hidden}

    return jaxkd.adapters.plain(init, apply)


student, expert = network(5), network(4)


def batch(step, size=6, *, tasks=None, retained=0):
    """Returns a batch of the step's task; its first rows are retained examples."""
    rng = np.random.default_rng(step)
    task = task_of(step) if tasks is None else tasks
    label = rng.choice(TASKS[task], size)
    old = [number for group in TASKS[:task] for number in group]
    if old:
        label[:retained] = rng.choice(old, retained)
    return {"image": rng.normal(size=(size, 2, 2, 2)).astype(np.float32), "label": label.astype(np.int32)}


jitted = functools.cache(jax.jit)  # one compiled program for tests that share a distiller


def task_of(step):
    return 0 if step < 2 else 1 if step < 5 else 2


def run(kd, steps, *, state=None, step=None, give=batch, seed=1):
    state = kd.init(jax.random.key(seed), give(0)) if state is None else state
    step, found = step or jitted(kd.step), []
    for i in range(int(state.step), steps):
        state, metrics = step(state, give(i))
        found.append(jaxkd.metrics.compute(metrics))
    return state, found


def whole():
    images = np.random.default_rng(0).normal(size=(48, 2, 2, 2)).astype(np.float32)
    return data.from_arrays(images, np.arange(48) % 6, num_classes=6)


def everything():
    """Evaluation data with all classes."""
    return data.Resident(whole(), 48, shuffle=False)


def sequence(*, more=0, size=5):
    """Training data for `fit`, with the same tasks and steps."""
    parts = data_tasks.class_incremental(whole(), TASKS)
    kept = [data_tasks.exemplars(part, per_class=2) for part in parts] if more else None
    return data_tasks.Tasks([data.Resident(p, size) for p in parts], STEPS, retained=kept, retained_size=more)


def log_softmax(logits):
    logits = np.asarray(logits, np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
