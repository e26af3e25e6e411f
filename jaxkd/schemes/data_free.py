"""Data-free distillation: the student learns from the teacher alone, on images that are made for it."""

from __future__ import annotations

import jax

from jaxkd import checks
from jaxkd.schemes.synthesis.contract import LABEL, Synthesis
from jaxkd.training import slots
from jaxkd.training.distill import merged
from jaxkd.training.distill import shape_of as _shape_of
from jaxkd.types import Array, Batch, Distiller, Metrics, TrainState

__all__ = ["data_free"]

_SLOT = "synthesis"
_STREAM = 0x5E6D  # of the synthesiser's keys, apart from those of the wrapped distiller


def data_free(kd: Distiller, synthesis: Synthesis) -> Distiller:
    """A distiller whose student never sees an image that was not made from the teacher.

    Before each step, the synthesiser makes the images of the batch, and learns to; the step is then that of the wrapped
    distiller on them.

    =====================  ==============================================  ==========================================
    method                 synthesiser                                     the teacher gives
    =====================  ==============================================  ==========================================
    DAFL                   `jaxkd.schemes.synthesis.dafl`                  logits, a feature
    DeepInversion          `jaxkd.schemes.synthesis.inversion`             logits, BatchNorm statistics
    CMI                    `jaxkd.schemes.synthesis.cmi`                   logits, features, BatchNorm statistics
    with the data          `jaxkd.schemes.synthesis.given`                 what the objective asks for
    =====================  ==============================================  ==========================================

    Its input is `jaxkd.data.Noise`, which has no image; a batch that has one is refused, so that no mistake can let the
    student see it. ``evaluate`` is the wrapped distiller's, on real batches.

    Args:
      kd: `jaxkd.distill` of a student and a frozen teacher, with an objective that reads what there is: the teacher's
        outputs, and ``batch/label``, which is the class that an image was made for.
      synthesis: what makes the images. What it learns and remembers is in the state, ``opt_state["synthesis"]``.

    Returns:
      A `Distiller`. ``step`` also reports the synthesiser's terms, as ``synthesis/...``.

    Raises:
      ValueError: when it is initialised or applied: the batch lacks something, or has what is to be made.

    >>> import jax.numpy as jnp, optax, jaxkd
    >>> from jaxkd import adapters
    >>> from jaxkd.data.noise import Noise
    >>> from jaxkd.schemes.synthesis import dafl
    >>> generator = adapters.plain(lambda key, z: jnp.eye(4), lambda w, z: {"image": z @ w}, inputs="noise")
    >>> model = adapters.plain(lambda key, x: jnp.zeros((4, 3)), lambda w, x: x @ w)
    >>> teacher = jaxkd.teachers.frozen(model, jaxkd.Variables(3 * jnp.eye(4, 3)))
    >>> objective = jaxkd.term(jaxkd.losses.soft_target_kl, "student/logits", "teacher/logits")
    >>> kd = jaxkd.distill(model, teacher, objective, optimizer=optax.sgd(1.0))
    >>> kd = data_free(kd, dafl(teacher, generator, optax.adam(0.01), feature=None, activation=0.0))
    >>> noise = Noise(8, 4)
    >>> state = kd.init(jax.random.key(0), next(iter(noise)))
    >>> step = jax.jit(kd.step)
    >>> for batch, _ in zip(noise, range(100)):
    ...     state, found = step(state, batch)
    >>> sorted(found)[-4:]
    ['synthesis/entropy', 'synthesis/loss', 'synthesis/one_hot', 'weight']
    >>> float(kd.evaluate(state, {"image": 2 * jnp.eye(3, 4), "label": jnp.arange(3)})["accuracy"].sum)  # of 3
    3.0
    """

    def made(batch: Batch) -> Batch:
        entries = synthesis.shapes(batch)
        if twice := sorted((entries.keys() - {LABEL}) & batch.keys()):
            raise ValueError(
                f"data_free: expected a batch without what is made for it, got {', '.join(map(repr, twice))} in "
                f"{checks.describe(batch)}. Train on jaxkd.data.Noise; batches of data are for evaluate."
            )
        return entries

    def init(key: Array, batch: Batch) -> TrainState:
        shapes = jax.tree.map(_shape_of, dict(batch))
        whole = {**shapes, **made(shapes)}
        state = kd.init(key, whole)
        own = synthesis.init(jax.random.fold_in(key, _STREAM), whole, state.teacher)
        return slots.put(state, _SLOT, own, "data_free")

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        made(jax.tree.map(_shape_of, dict(batch)))
        inner, own = slots.take(state, _SLOT, "data_free")
        key = jax.random.fold_in(jax.random.fold_in(state.key, _STREAM), state.step)
        entries, own, found = synthesis.apply(own, batch, state.teacher, state.student, key=key, step=state.step)
        new, metrics = kd.step(inner, {**batch, **entries})
        reported = merged(metrics, {f"{_SLOT}/{name}": mean for name, mean in found.items()})
        return slots.put(new, _SLOT, own, "data_free"), reported

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        return kd.evaluate(slots.take(state, _SLOT, "data_free")[0], batch)

    return Distiller(init, step, evaluate)
