"""The cached teacher: evaluated before training, decoded from the batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from jaxkd.types import UNSEEN, Array, Batch, Outputs, PyTree, Teacher, Variables


class BatchDecoder(Protocol):
    """Decoder of teacher outputs in a batch, such as `jaxkd.cache.Cache`.

    If it also has ``unseen(batch, tolerance)``, as `Cache` has, the inputs of student and teacher are compared.
    """

    def decode(self, batch: Mapping[str, Any]) -> Outputs:
        """Returns the outputs of the batch's examples."""


def cached(cache: BatchDecoder, *, tolerance: float | None = 0.01) -> Teacher:
    """A teacher whose outputs are read from the batch.

    `jaxkd.cache.attach` adds the outputs to the batches of a loader. It also replaces the epoch of a batch, from which
    the transform draws, by the number of the cached view, so that the student sees the images that the teacher saw. The
    state of this teacher is empty: a checkpoint holds neither its weights nor its outputs.

    The cache holds a checksum of what the teacher saw for each example and view. The step compares it with the batch
    that this teacher is given, after every transform of the step. If another augmentation, seed, normalization or image
    size makes them differ, `jaxkd.training.fit` and ``evaluate`` end with a `jaxkd.cache.StaleCacheError`; in a loop of
    your own, the loss is NaN, and the metric ``unseen_inputs`` is the share of such examples. Masked examples are not
    compared.

    Args:
      cache: from `jaxkd.cache.write_cache` or `jaxkd.cache.open_cache`. A set to evaluate on has its own cache, written
        with the same ``codecs`` and ``name`` and attached in the same way; this teacher decodes them all.
      tolerance: largest difference between the inputs of student and teacher, relative to their size; None to train a
        student on other views than those of its teacher.

    Returns:
      A `Teacher` with the stored outputs, float32; for ``codecs.top_k``, also ``logits/log_probs``,
      ``logits/indices`` and ``logits/log_tail``. A step reads `jaxkd.types.UNSEEN` beside them.

    Raises:
      ValueError: the tolerance is negative; from ``init`` and ``apply``: the batch carries no outputs, or lacks an
        entry that the teacher read.

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
    ...     cache = jaxkd.cache.write_cache(
    ...         directory, linear, jaxkd.Variables(jnp.eye(64, 10)), train, transform=augment, views=2, progress=False
    ...     )
    ...     kd = jaxkd.distill(linear, teachers.cached(cache), objective, optimizer=optax.sgd(0.5))
    ...     kd = jaxkd.distillers.preprocess(kd, train_transform=augment)
    ...     loader = jaxkd.cache.attach(cache, train)
    ...     result = jaxkd.training.fit(kd, loader, epochs=3, key=jax.random.key(0), progress=False)
    >>> result.history[-1]["train/objective"] < result.history[0]["train/objective"]
    True
    >>> jax.tree.leaves(result.state.teacher)
    []
    """
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"teachers.cached, tolerance: expected a number of at least 0, or None, got {tolerance}.")
    compare: Any = getattr(cache, "unseen", None)

    def init(key: Array | None, batch: Batch, student: Variables | None) -> PyTree:
        del key, batch, student
        return {}

    def apply(state: PyTree, batch: Batch, *, key: Array | None) -> Outputs:
        del state, key
        outputs = cache.decode(batch)
        if tolerance is None or compare is None:
            return outputs
        return {**outputs, UNSEEN: compare(batch, tolerance)}

    def update(state: PyTree, student: Variables, step: Any) -> PyTree:
        del student, step
        return state

    return Teacher(init, apply, update)
