"""The cached teacher: evaluated before training, read back as part of the batch."""

from __future__ import annotations

from typing import Any

from jaxkd.teachers.cache.read import Cache
from jaxkd.types import Array, Batch, Outputs, PyTree, Teacher, Variables


def cached(cache: Cache) -> Teacher:
    """A teacher whose outputs come with the batch, from a cache that is attached to the input.

    Its state is empty: neither its weights nor its outputs are in a train state or a checkpoint. Caching is right under
    augmentation because the student's views are the ones that the teacher saw: the attached input tells the transform
    the number of the view in the place of the pass.

    Args:
      cache: from `write_cache` or `open_cache`. Sets to evaluate on have caches of their own, written with the same
        ``keep`` and ``name`` and attached in the same way; this one decodes them all.

    Returns:
      A `Teacher` with the outputs that were kept, float32; of ``codecs.top_k``, also ``logits/log_probs``,
      ``logits/indices`` and ``logits/log_tail``.

    Raises:
      ValueError: from ``init`` and ``apply``: the batch carries no outputs.

    >>> import functools, tempfile
    >>> import jax, jax.numpy as jnp, optax, jaxkd
    >>> from jaxkd import data, losses, teachers
    >>> linear = jaxkd.adapters.plain(
    ...     lambda key, x: jnp.zeros((64, 10)), lambda w, x: x.reshape(-1, 64) / 255 @ w, inputs="image"
    ... )
    >>> train = data.Resident(data.load("digits", "train"), batch_size=64)
    >>> augment = functools.partial(data.shift, seed=0)
    >>> objective = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=4.0)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     cache = teachers.write_cache(
    ...         directory, linear, jaxkd.Variables(jnp.eye(64, 10)), train, transform=augment, views=2, progress=False
    ...     )
    ...     kd = jaxkd.distill(linear, teachers.cached(cache), objective, optimizer=optax.sgd(0.5))
    ...     kd = jaxkd.training.preprocess(kd, train=augment)
    ...     result = jaxkd.training.fit(kd, cache.attach(train), epochs=3, key=jax.random.key(0), progress=False)
    >>> result.history[-1]["train/objective"] < result.history[0]["train/objective"]
    True
    >>> jax.tree.leaves(result.state.teacher)
    []
    """

    def init(key: Array | None, batch: Batch, student: Variables | None) -> PyTree:
        del key, batch, student
        return {}

    def apply(state: PyTree, batch: Batch, *, key: Array | None) -> Outputs:
        del state, key
        return cache.decode(batch)

    def update(state: PyTree, student: Variables, step: Any) -> PyTree:
        del student, step
        return state

    return Teacher(init, apply, update)
