"""DeepInversion: images fitted to the teacher's BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd._core import axes, batches
from jaxkd._core.model_calls import model_batch
from jaxkd._core.train_state import strongly_typed
from jaxkd.schemes.synthesis import _contract, _rounds, _terms
from jaxkd.schemes.synthesis._contract import IMAGE, LABEL, STATISTICS, Synthesis
from jaxkd.types import Array, Batch, Metrics, Model, PyTree, Teacher, Variables


def inversion(
    teacher: Teacher,
    shape: Sequence[int],
    optimizer: optax.GradientTransformation,
    *,
    iterations: int = 2000,
    slots: int = 8,
    cross_entropy: float = 1.0,
    statistics: float = 10.0,
    total_variation: float = 2.5e-5,
    l2: float = 3e-8,
    jitter: int = 2,
    student: Model | None = None,
    competition: float = 0.0,
    temperature: float = 3.0,
) -> Synthesis:
    """Pixels optimized to match labels and the teacher's BatchNorm statistics.

    Also known as: DeepInversion; with ``competition``, Adaptive DeepInversion (ADI).

    ``L = CE(t(x), y) + α_f R_feature(x) + α_tv R_TV(x) + α_ℓ2 ‖x‖₂ + α_c (1 − JS(p_t, p_s))``. Yin et al., "Dreaming to
    Distill: Data-free Knowledge Transfer via DeepInversion", CVPR 2020, equations 1 to 9; the last term is that of
    Adaptive DeepInversion. The defaults are the paper's values on CIFAR-10, where α_f is one of several that were
    tried, and α_c = 10. As in the authors' code, the images are shifted by a random offset before each update, and a
    round yields those of the lowest loss.

    The authors first make all images. Here each training step makes one update of a batch of images, and competes with
    the current student; after ``iterations`` updates the batch enters a pool, on which the student trains. While the
    pool is empty, it trains on the current images.

    Args:
      teacher: teacher of the student, of a model `jaxkd.wrappers.with_batch_stat_distance`.
      shape: shape of one image, ``(height, width, channels)``; images are made as normalized inputs of the networks.
      optimizer: any optax transformation, for the pixels; its state begins anew with each round. The authors use Adam
        with 0.1 on CIFAR-10.
      iterations: number of updates of one batch of images.
      slots: size of the pool in batches; a new batch replaces the oldest one.
      cross_entropy: weight of the first term.
      statistics: α_f, for the teacher's output ``batch_statistics``.
      total_variation: α_tv.
      l2: α_ℓ2.
      jitter: largest offset in pixels of the cyclic shift, which all images of a batch share.
      student: model of the student, for the competition.
      competition: α_c.
      temperature: temperature of the competition.

    Returns:
      A `Synthesis` that makes ``image`` and ``label``. The classes are the ``label`` of the batch with which a round
      begins. All batches have the same size.

    Raises:
      ValueError: a number or the shape is invalid, or the competition lacks the student; from ``init``: the batch lacks
        an entry, or the teacher an output.

    >>> import jaxkd
    >>> from jaxkd import adapters
    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: jnp.ones((4, 3)), lambda w, x: x.reshape(-1, 4) @ w)
    >>> teacher = jaxkd.teachers.frozen(model, Variables(jnp.eye(4, 3)))
    >>> synthesis = inversion(teacher, (2, 2, 1), optax.adam(0.1), iterations=10, slots=3, statistics=0.0)
    >>> batch = {"label": jax.ShapeDtypeStruct((8,), jnp.int32)}
    >>> batch = {**batch, **synthesis.shapes(batch)}
    >>> synthesis.init(jax.random.key(0), batch, Variables(jnp.eye(4, 3)))["pool"]["image"].shape
    (3, 8, 2, 2, 1)
    """
    shape = tuple(shape)
    _rounds.check("inversion", iterations, slots)
    if len(shape) != 3 or any(size < 1 for size in shape):
        raise ValueError(f"inversion, shape: expected (height, width, channels) of one image, got {shape}.")
    if jitter < 0:
        raise ValueError(f"inversion, jitter: expected a number of pixels, at least 0, got {jitter}.")
    _contract.with_student("inversion", competition, student)

    def shapes(batch: Batch) -> dict[str, Any]:
        size = _contract.needs("inversion", batch, LABEL)
        image = jax.ShapeDtypeStruct((size, *shape), jnp.float32)
        return {IMAGE: image, LABEL: jax.ShapeDtypeStruct((size,), jnp.int32)}

    def init(key: Array, batch: Batch, teacher_state: PyTree) -> PyTree:
        del key
        _contract.teacher_shapes(
            "inversion", teacher, teacher_state, batch, "logits", *([STATISTICS] if statistics else [])
        )
        image = jnp.zeros(batch[IMAGE].shape, jnp.float32)
        return {
            **_rounds.begin({name: batch[name] for name in (IMAGE, LABEL)}, slots),
            "image": image,
            "label": jnp.zeros(batch[LABEL].shape, jnp.int32),
            "optimizer": strongly_typed(optimizer.init(image)),
        }

    def apply(
        state: PyTree, batch: Batch, teacher_state: PyTree, variables: Variables, *, key: Array, step: Any
    ) -> tuple[Batch, PyTree, Metrics]:
        size, mask = _contract.needs("inversion", batch, LABEL), batches.example_mask(batch)
        axis_name = axes.mapped_axis()
        options: dict[str, Any] = {"mask": mask, "axis_name": axis_name}
        rows = state["image"].shape[0]
        _rounds.check_size("inversion", rows, size, mask, axis_name)
        # Positions of masked examples are arbitrary; the minimum keeps them in range.
        places = jnp.minimum(axes.positions(mask, size, axis_name), rows - 1)
        begin_key, jitter_key, draw_key = jax.random.split(key, 3)
        labels = _rounds.collect(jnp.asarray(batch[LABEL], jnp.int32), places, rows, mask, axis_name)

        def restart() -> Any:
            image = jax.random.normal(begin_key, state["image"].shape, jnp.float32)
            return image, labels, strongly_typed(optimizer.init(image))

        image, label, opt_state = jax.lax.cond(
            state["age"] == 0, restart, lambda: (state["image"], state["label"], state["optimizer"])
        )
        own_labels, own_images = label[places], image[places]

        def loss(image: Array) -> tuple[Array, Any]:
            x = image[places]
            if jitter:
                offset = jax.random.randint(jitter_key, (2,), -jitter, jitter + 1)
                x = jnp.roll(x, offset, axis=(1, 2))
            inputs = model_batch({**batch, IMAGE: x, LABEL: own_labels}, step)
            teacher_outputs = teacher.apply(teacher_state, inputs, key=None)
            logits = _contract.output_of("inversion", teacher_outputs, "logits")
            values = {
                "cross_entropy": _terms.cross_entropy(logits, own_labels, **options),
                "total_variation": _terms.total_variation(x, **options),
                "l2": _terms.norm(x, **options),
            }
            value = cross_entropy * values["cross_entropy"]
            value += total_variation * values["total_variation"] + l2 * values["l2"]
            if statistics:
                distance = _contract.output_of("inversion", teacher_outputs, STATISTICS)
                values["statistics"] = _contract.mean_of(distance, mask, axis_name)
                value += statistics * values["statistics"]
            if competition and student is not None:
                student_logits = _contract.output_of(
                    "inversion", _contract.outputs_of(student, variables, inputs), "logits"
                )
                values["competition"] = _terms.competition(student_logits, logits, temperature=temperature, **options)
                value += competition * values["competition"]
            return value, values

        value, values, grads = _contract.gradient(loss, image, axis_name)
        new, opt_state = _contract.updated(optimizer, grads, opt_state, image)
        new_state = _rounds.finish(state, {IMAGE: image, LABEL: label}, value, iterations)
        made = _rounds.draw(new_state, draw_key, places, own_images, own_labels)
        metrics = _contract.reported({"loss": value, **values}, mask, size, axis_name)
        return made, {**new_state, "image": new, "label": label, "optimizer": opt_state}, metrics

    return Synthesis(shapes, init, apply)
