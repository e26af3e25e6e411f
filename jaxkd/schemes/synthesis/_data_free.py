"""Data-free distillation: the student trains on images made from the teacher."""

from __future__ import annotations

import jax

from jaxkd._core import checks, train_state
from jaxkd.metrics import join
from jaxkd.schemes.synthesis._contract import LABEL, Synthesis
from jaxkd.types import Array, Batch, Distiller, Metrics, TrainState

_SLOT = "synthesis"
_STREAM = 0x5E6D  # folded into the key, so that the synthesizer's keys differ from the wrapped distiller's


def data_free(kd: Distiller, synthesis: Synthesis) -> Distiller:
    """Data-free distillation: every training image is made from the teacher.

    Before each step, the synthesizer makes the images of the batch and trains itself; then the wrapped distiller takes
    its step on them.

    =============  ===================================  ======================================
    method         synthesizer                          needed outputs of the teacher
    =============  ===================================  ======================================
    DAFL           `jaxkd.schemes.synthesis.dafl`       logits, a feature
    DeepInversion  `jaxkd.schemes.synthesis.inversion`  logits, BatchNorm statistics
    CMI            `jaxkd.schemes.synthesis.cmi`        logits, features, BatchNorm statistics
    =============  ===================================  ======================================

    The training input is `jaxkd.data.Noise`, which has no images. A batch with an image is an error, so that the
    student cannot see real data by mistake. ``evaluate`` is that of the wrapped distiller, on real batches.

    Args:
      kd: `jaxkd.distill` of a student and a frozen teacher. Its objective may read the teacher's outputs and
        ``batch/label``, the class for which an image was made.
      synthesis: synthesizer of the images. Its parameters and state are in ``opt_state["synthesis"]``.

    Returns:
      A `Distiller`. ``step`` also reports the synthesizer's terms, as ``synthesis/...``.

    Raises:
      ValueError: from ``init`` and ``step``: the batch lacks an entry, or contains one that the synthesizer makes.

    >>> import jax.numpy as jnp, optax, jaxkd
    >>> from jaxkd import adapters
    >>> from jaxkd.data import Noise
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
    ...     state, metrics = step(state, batch)
    >>> sorted(metrics)[-4:]
    ['synthesis/entropy', 'synthesis/loss', 'synthesis/one_hot', 'weight']
    >>> float(kd.evaluate(state, {"image": 2 * jnp.eye(3, 4), "label": jnp.arange(3)})["accuracy"].sum)  # of 3
    3.0
    """

    def synthesized(batch: Batch) -> Batch:
        entries = synthesis.shapes(batch)
        if twice := sorted((entries.keys() - {LABEL}) & batch.keys()):
            raise ValueError(
                f"data_free: expected a batch without the entries that are synthesized, got "
                f"{', '.join(map(repr, twice))} in {checks.describe(batch)}. Train on jaxkd.data.Noise; batches of "
                "data are for evaluate."
            )
        return entries

    def init(key: Array, batch: Batch) -> TrainState:
        checks.batch("init, batch", batch)
        shapes = jax.tree.map(train_state.shape_of, dict(batch))
        whole = {**shapes, **synthesized(shapes)}
        state = kd.init(key, whole)
        own = synthesis.init(jax.random.fold_in(key, _STREAM), whole, state.teacher)
        return train_state.put(state, _SLOT, own, "data_free")

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        synthesized(jax.tree.map(train_state.shape_of, dict(batch)))
        inner, own = train_state.take(state, _SLOT, "data_free")
        key = jax.random.fold_in(jax.random.fold_in(state.key, _STREAM), state.step)
        entries, own, terms = synthesis.apply(own, batch, state.teacher, state.student, key=key, step=state.step)
        new, metrics = kd.step(inner, {**batch, **entries})
        reported = join(metrics, {f"{_SLOT}/{name}": mean for name, mean in terms.items()})
        return train_state.put(new, _SLOT, own, "data_free"), reported

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        return kd.evaluate(train_state.take(state, _SLOT, "data_free")[0], batch)

    return Distiller(init, step, evaluate)
