"""Several updates with each batch, where a batch costs more than an update."""

from __future__ import annotations

import jax

from jaxkd._core import checks
from jaxkd.metrics import merge
from jaxkd.types import Array, Batch, Distiller, Metrics, TrainState


def repeated(kd: Distiller, *, times: int) -> Distiller:
    """Returns a distiller that makes several updates with each batch.

    It is for batches that are expensive to make: ``schemes.on_policy(repeated(kd, times=4), ...)`` samples sequences
    once for four updates, as proximal policy optimization does with its trajectories (Schulman et al., 2017). The
    updates follow each other outside of a loop, since XLA on a CPU runs gradients of convolutions many times slower in
    one. What they have in common, such as the outputs of a frozen teacher, is computed once by the compiled program.

    Args:
      kd: any distiller.
      times: number of updates.

    Returns:
      A `Distiller` with the same state, whose ``step`` counts batches: schedules of the objective see the number of
      batches before this one, and schedules of the optimizer the number of updates. Every update has its own PRNG
      keys, the first one those of ``kd``. ``step`` reports the means over the updates.

    Raises:
      ValueError: the number of updates is not positive.

    >>> import jax.numpy as jnp, optax, jaxkd
    >>> model = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> loss = jaxkd.term(jaxkd.losses.cross_entropy, "student/logits", "batch/label")
    >>> kd = jaxkd.distill(model, jaxkd.teachers.none(), loss, optimizer=optax.sgd(0.1))
    >>> batch = {"x": jnp.ones((4, 2)), "label": jnp.zeros(4, jnp.int32)}
    >>> state = kd.init(jax.random.key(0), batch)
    >>> twice, _ = repeated(kd, times=2).step(state, batch)
    >>> one_by_one, _ = kd.step(kd.step(state, batch)[0], batch)
    >>> bool((twice.student.params == one_by_one.student.params).all()), int(twice.step), int(one_by_one.step)
    (True, 1, 2)
    """
    checks.contract("repeated, kd", kd, Distiller)
    if times < 1:
        raise ValueError(f"repeated, times: expected a positive number of updates, got {times}.")

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        checks.state("repeated, state", state)
        new, reported = kd.step(state, batch)
        for number in range(1, times):
            key: Array = jax.random.fold_in(state.key, number)
            new, metrics = kd.step(new._replace(step=state.step, key=key), batch)
            reported = merge(reported, metrics)
        return new._replace(key=state.key), reported

    return Distiller(kd.init, step, kd.evaluate)
