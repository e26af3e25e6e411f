"""Contrastive model inversion: generated images that differ from all earlier ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd._core import axes, batches, checks
from jaxkd._core.axes import average_over_devices, gather
from jaxkd._core.train_state import strongly_typed
from jaxkd.objectives.layers import dense, dense_init, unit
from jaxkd.schemes.synthesis import _contract, _rounds, _terms
from jaxkd.schemes.synthesis._contract import IMAGE, LABEL, NOISE, STATISTICS, Synthesis
from jaxkd.types import Array, Batch, Metrics, Model, Outputs, PyTree, Teacher, Variables

_GENERATOR, _HEAD = "generator", "head"
_VIEWS = ("local", "global")


def cmi(
    teacher: Teacher,
    generator: Model,
    optimizer: optax.GradientTransformation,
    *,
    feature_names: Sequence[str],
    iterations: int = 200,
    slots: int = 8,
    memory: int = 4096,
    embedding: int = 128,
    temperature: float = 0.1,
    cross_entropy: float = 1.0,
    statistics: float = 1.0,
    contrastive: float = 0.8,
    student: Model | None = None,
    adversarial: float = 0.0,
    augment: Callable[[Array, Array], Array] | None = None,
) -> Synthesis:
    """A generator and its latent codes, fitted to the teacher anew for each batch.

    Also known as: CMI (contrastive model inversion).

    ``L = α R_feature(x) + β CE(t(x), y) + γ L_adv + δ L_cr`` with x = G(z). Fang et al., "Contrastive Model Inversion
    for Data-Free Knowledge Distillation", IJCAI 2021, with the defaults of the authors' synthesizer. R_feature compares
    BatchNorm statistics; L_adv = ``−mean 1[argmax s = argmax t] · KL(p_t ‖ p_s)`` is low where student and teacher
    differ. L_cr discriminates each image from all others of the batch and of earlier rounds, by another view of it. z
    and G begin anew with each round; the projection h of L_cr does not.

    As in the authors' code, a round yields its batch of the lowest loss, the memory stores the teacher's features (maps
    averaged over their positions), and the current h is applied to them. Differences: the global view is the image
    itself, not a shifted crop; the whole memory serves as negatives, not a sample; and a training step makes one
    update, while the student trains on the pool, as in `inversion`.

    Args:
      teacher: teacher of the student, of a model `jaxkd.wrappers.with_batch_stat_distance`.
      generator: model from an adapter, with ``inputs="noise"``; its output ``image`` is the networks' normalized input.
      optimizer: any optax transformation, with a state for G and z, which begins anew with each round, and one for h;
        the authors use Adam with 1e-3 and β₁ = 0.5.
      feature_names: names of the teacher's outputs, maps or vectors, that describe an image in L_cr.
      iterations: number of updates in a round.
      slots: size of the student's pool in batches; a new batch replaces the oldest one.
      memory: number of images whose features are stored, at least a batch.
      embedding: number of features of h, a multilayer perceptron with one hidden layer.
      temperature: temperature of L_cr.
      cross_entropy: β.
      statistics: α, for the teacher's output ``batch_statistics``.
      contrastive: δ.
      student: model of the student, for L_adv.
      adversarial: γ.
      augment: ``(key, image) -> image``, the other view of one image; `resized_crop_and_flip` by default.

    Returns:
      A `Synthesis` that makes ``image`` and ``label``. Classes and latent codes are the ``label`` and ``noise`` of the
      batch with which a round begins. All batches have the same size.

    Raises:
      ValueError: a number is invalid, there are no features, or L_adv lacks the student; from ``init``: the batch lacks
        an entry, or a model an output.

    >>> import jaxkd
    >>> from jaxkd import adapters
    >>> from jaxkd import adapters
    >>> generator = adapters.plain(lambda key, z: jnp.eye(4), lambda w, z: {"image": z @ w}, inputs="noise")
    >>> model = adapters.plain(lambda key, x: jnp.ones((4, 3)), lambda w, x: x @ w)
    >>> teacher = jaxkd.teachers.frozen(model, Variables(jnp.eye(4, 3)))
    >>> options = {"feature_names": ["logits"], "statistics": 0.0, "memory": 32, "embedding": 5}
    >>> synthesis = cmi(teacher, generator, optax.adam(1e-3), **options, augment=lambda key, image: -image)
    >>> batch = {"noise": jax.ShapeDtypeStruct((8, 4), jnp.float32), "label": jax.ShapeDtypeStruct((8,), jnp.int32)}
    >>> state = synthesis.init(jax.random.key(0), {**batch, **synthesis.shapes(batch)}, Variables(jnp.eye(4, 3)))
    >>> state["memory"]["local"].shape, state["head"][1]["kernel"].shape
    ((32, 3), (3, 5))
    """
    _rounds.check("cmi", iterations, slots)
    feature_names = (feature_names,) if isinstance(feature_names, str) else tuple(feature_names)
    if not feature_names:
        raise ValueError("cmi, feature_names: expected at least one of the teacher's outputs, got none.")
    for name, number in (("memory", memory), ("embedding", embedding), ("temperature", temperature)):
        if not number > 0:
            raise ValueError(f"cmi, {name}: expected a positive number, got {number}.")
    _contract.with_student("cmi", adversarial, student)
    view = augment or resized_crop_and_flip

    def shapes(batch: Batch) -> dict[str, Any]:
        size = _contract.needs("cmi", batch, NOISE, LABEL)
        return {**_contract.generated(generator, batch), LABEL: jax.ShapeDtypeStruct((size,), jnp.int32)}

    def init(key: Array, batch: Batch, teacher_state: PyTree) -> PyTree:
        names = "logits", *feature_names, *([STATISTICS] if statistics else [])
        outputs = _contract.teacher_shapes("cmi", teacher, teacher_state, batch, *names)
        rows, width = batch[LABEL].shape[0], jax.eval_shape(lambda x: _features(x, feature_names), outputs).shape[1]
        if rows > memory:
            raise ValueError(f"cmi, memory: expected at least a batch of {rows} images, got {memory}.")
        generator_key, first, second = jax.random.split(key, 3)
        model_variables = strongly_typed(generator.init(generator_key, _contract.zeros(batch)))
        head = [dense_init(first, width, width), dense_init(second, width, embedding)]
        noise = jnp.zeros(batch[NOISE].shape, jnp.float32)
        views = {name: jax.ShapeDtypeStruct((rows, width), jnp.float32) for name in _VIEWS}
        return {
            **_rounds.begin({name: batch[name] for name in (IMAGE, LABEL)} | views, slots),
            "memory": {name: jnp.zeros((memory, width), jnp.float32) for name in _VIEWS},
            _GENERATOR: model_variables,
            "noise": noise,
            "label": jnp.zeros(rows, jnp.int32),
            _HEAD: head,
            "optimizer": {
                _GENERATOR: strongly_typed(optimizer.init((model_variables.params, noise))),
                _HEAD: strongly_typed(optimizer.init(head)),
            },
        }

    def apply(
        state: PyTree, batch: Batch, teacher_state: PyTree, variables: Variables, *, key: Array, step: Any
    ) -> tuple[Batch, PyTree, Metrics]:
        size, mask = _contract.needs("cmi", batch, NOISE, LABEL), batches.example_mask(batch)
        axis_name = axes.mapped_axis()
        options: dict[str, Any] = {"mask": mask, "axis_name": axis_name}
        rows = state["label"].shape[0]
        _rounds.check_size("cmi", rows, size, mask, axis_name)
        # Positions of masked examples are arbitrary; the minimum keeps them in range.
        places = jnp.minimum(axes.positions(mask, size, axis_name), rows - 1)
        begin_key, view_key, draw_key, own_key = jax.random.split(key, 4)

        def whole(x: Any, dtype: Any) -> Array:
            return _rounds.collect(jnp.asarray(x, dtype), places, rows, mask, axis_name)

        fresh = whole(batch[NOISE], jnp.float32), whole(batch[LABEL], jnp.int32)
        like = {name: jnp.zeros((rows, *jnp.shape(x)[1:]), jnp.result_type(x)) for name, x in batch.items()}

        def restart() -> Any:
            model_variables = strongly_typed(generator.init(begin_key, like))
            return model_variables, *fresh, strongly_typed(optimizer.init((model_variables.params, fresh[0])))

        def resume() -> Any:
            return state[_GENERATOR], state["noise"], state["label"], state["optimizer"][_GENERATOR]

        model_variables, noise, label, opt_state = jax.lax.cond(state["age"] == 0, restart, resume)
        own_labels = label[places]
        remembered = jnp.arange(memory) < state["rounds"] * rows

        def loss(params: PyTree) -> tuple[Array, Any]:
            weights, codes = params[_GENERATOR]
            own = {**batch, NOISE: codes[places], LABEL: own_labels}
            outputs, new = generator.apply(
                Variables(weights, model_variables.state), own, key=_contract.device_key(own_key, axis_name), train=True
            )
            image = _contract.image_of(outputs)
            inputs = {**own, IMAGE: image, "step": step}
            teacher_outputs = teacher.apply(teacher_state, inputs, key=None)
            logits = _contract.output_of("cmi", teacher_outputs, "logits")
            values = {"cross_entropy": _terms.cross_entropy(logits, own_labels, **options)}
            value = cross_entropy * values["cross_entropy"]
            if statistics:
                distance = _contract.output_of("cmi", teacher_outputs, STATISTICS)
                values["statistics"] = _contract.mean_of(distance, mask, axis_name)
                value += statistics * values["statistics"]
            if adversarial and student is not None:
                student_logits = _contract.output_of("cmi", _contract.outputs_of(student, variables, inputs), "logits")
                values["adversarial"] = _terms.disagreement(student_logits, logits, **options)
                value += adversarial * values["adversarial"]
            keys = jax.vmap(lambda place: jax.random.fold_in(view_key, place))(places)
            other = teacher.apply(teacher_state, {**inputs, IMAGE: jax.vmap(view)(keys, image)}, key=None)
            seen = {"local": _features(other, feature_names), "global": _features(teacher_outputs, feature_names)}
            values["contrastive"] = contrast(
                params[_HEAD], seen, state["memory"], remembered, temperature=temperature, **options
            )
            value += contrastive * values["contrastive"]
            return value, (jax.lax.stop_gradient((image, seen)), new, values)

        old = {_GENERATOR: (model_variables.params, noise), _HEAD: state[_HEAD]}
        value, ((image, seen), new, values), grads = _contract.gradient(loss, old, axis_name)
        if axis_name is not None:
            new = average_over_devices(new, axis_name)
        (params, noise), opt_state = _contract.updated(optimizer, grads[_GENERATOR], opt_state, old[_GENERATOR])
        head, head_state = _contract.updated(optimizer, grads[_HEAD], state["optimizer"][_HEAD], old[_HEAD])
        entries = {IMAGE: whole(image, image.dtype), LABEL: label}
        entries |= {name: whole(x, jnp.float32) for name, x in seen.items()}
        new_state = _rounds.finish(state, entries, value, iterations)
        done = new_state["rounds"] > state["rounds"]
        at = jnp.where(done, (state["rounds"] * rows + jnp.arange(rows)) % memory, memory)
        metrics = _contract.reported({"loss": value, **values}, mask, size, axis_name)
        return (
            _rounds.draw(new_state, draw_key, places, image, own_labels),
            {
                **new_state,
                "memory": {k: x.at[at].set(new_state["best"][k], mode="drop") for k, x in state["memory"].items()},
                _GENERATOR: Variables(params, new),
                "noise": noise,
                "label": label,
                _HEAD: head,
                "optimizer": {_GENERATOR: opt_state, _HEAD: head_state},
            },
            metrics,
        )

    return Synthesis(shapes, init, apply)


def contrast(
    head: PyTree,
    seen: Mapping[str, Array],
    memory: Mapping[str, Array],
    remembered: Array,
    *,
    temperature: float = 0.1,
    mask: Array | None = None,
    axis_name: str | None = None,
) -> Array:
    """``mean_i −log softmax_j(⟨h(l_i), h(g_j)⟩ / T)_i``, over batch and memory.

    The mean over the images of the batch is added to the mean over those of the memory; j runs over both. l and g are
    the features of the local and the global view, and h(·) has unit length. No gradient passes through h(g). The second
    mean trains h, as in the authors' code.

    Args:
      head: parameters of h, two dense layers.
      seen: features of both views, ``local`` and ``global``, ``[batch, features]``.
      memory: the same of earlier images, ``[memory, features]``.
      remembered: bool ``[memory]``, True for the rows of the memory that are filled.
      temperature: T.
      mask: bool ``[batch]``, False for excluded examples; None for none.
      axis_name: mapped axis that splits the batch, or None. The value is equal on all devices.

    >>> head = [{"kernel": jnp.eye(2)}, {"kernel": jnp.eye(2)}]
    >>> views = {"local": jnp.eye(2), "global": jnp.eye(2)}
    >>> contrast(head, views, views, jnp.array([False, False]), temperature=1.0).round(4)  # log(1 + 1/e)
    Array(0.3133, dtype=float32)
    """

    def embed(x: Array) -> Array:
        return unit(dense(head[1], jax.nn.relu(dense(head[0], x))))

    if mask is not None:
        seen = {name: jnp.where(mask[:, None], x, 0) for name, x in seen.items()}
    size = seen["local"].shape[0]
    counts = gather(jnp.ones(size, bool) if mask is None else mask, axis_name)
    others = jax.lax.stop_gradient(embed(jnp.concatenate([gather(seen["global"], axis_name), memory["global"]])))
    valid = jnp.concatenate([counts, remembered])
    first = 0 if axis_name is None else jax.lax.axis_index(axis_name) * size

    def nce(anchors: Array, own: Array, where: Array) -> Array:
        logits = jnp.matmul(embed(anchors), others.T, precision=jax.lax.Precision.HIGHEST) / temperature
        positive = own[:, None] == jnp.arange(len(others))[None, :]
        # The positive of a masked anchor is included, so that its logsumexp and gradient stay finite.
        total = jax.nn.logsumexp(logits, axis=1, where=valid[None, :] | positive)
        return jnp.where(where, total - jnp.sum(jnp.where(positive, logits, 0), axis=1), 0)

    batch = nce(seen["local"], first + jnp.arange(size), jnp.ones(size, bool) if mask is None else mask)
    earlier = nce(memory["local"], len(counts) + jnp.arange(len(remembered)), remembered)
    count = jnp.sum(remembered, dtype=earlier.dtype)
    return _contract.mean_of(batch, mask, axis_name) + jnp.sum(earlier) / jnp.maximum(count, 1)


def resized_crop_and_flip(key: Array, image: Array) -> Array:
    """Random square crop of at least a quarter of the area, resized, mirrored or not.

    >>> resized_crop_and_flip(jax.random.key(0), jnp.ones((4, 4, 1))).shape
    (4, 4, 1)
    """
    if image.ndim != 3:
        raise ValueError(
            f"resized_crop_and_flip: expected an image [height, width, channels], got {checks.shape(image)}. Give "
            "another view by augment=."
        )
    area_key, place_key, flip_key = jax.random.split(key, 3)
    side = jnp.sqrt(jax.random.uniform(area_key, (), jnp.float32, 0.25, 1.0))
    sizes = jnp.asarray(image.shape[:2], jnp.float32)
    corner = jax.random.uniform(place_key, (2,)) * (1 - side) * sizes
    scale = jnp.full(2, 1 / side)
    part = jax.image.scale_and_translate(image, image.shape, (0, 1), scale, -corner * scale, "linear", antialias=False)
    return jnp.where(jax.random.bernoulli(flip_key), part[:, ::-1], part)


def _features(outputs: Outputs, names: Sequence[str]) -> Array:
    """Concatenates features ``[batch, features]``; maps are averaged over positions."""
    vectors = []
    for name in names:
        x = _contract.output_of("cmi", outputs, name)
        vectors.append(x.reshape(x.shape[0], -1, x.shape[-1]).mean(axis=1).astype(jnp.float32))
    return jnp.concatenate(vectors, axis=1)
