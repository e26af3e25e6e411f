"""Models on other entries of the batch: views, other modalities, frames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd._core.model_calls import check_names
from jaxkd.types import RESERVED, Array, Batch, Model, Outputs, PyTree, Variables


def with_inputs(model: Model, **entries: str) -> Model:
    """Makes a model read other entries of the batch.

    ``with_inputs(model, image="spectrum")`` reads ``batch["spectrum"]`` in place of ``batch["image"]``. Cross-modal
    distillation (Gupta, Hoffman & Malik, 2016) is a teacher and a student that read different entries.

    Args:
      model: model from an adapter.
      **entries: for an entry that the model reads, the entry to read instead.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: ``init`` and ``apply`` raise it if the batch has no such entry.

    >>> import jax.numpy as jnp
    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: jnp.ones((2, 1)), lambda w, x: x @ w, inputs="x")
    >>> other = with_inputs(model, x="y")
    >>> batch = {"x": jnp.ones((1, 2)), "y": jnp.full((1, 2), 3.0)}
    >>> other.apply(other.init(jax.random.key(0), batch), batch, key=None, train=False)[0]["logits"]
    Array([[6.]], dtype=float32)
    """
    checks.contract("with_inputs, model", model, Model)

    def init(key: Array, batch: Batch) -> Variables:
        return model.init(key, _with(batch, entries))

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        return model.apply(variables, _with(batch, entries), key=key, train=train)

    return Model(init, apply)


def views(model: Model, others: Mapping[str, Mapping[str, str]]) -> Model:
    """Runs a model on its batch and, with the same parameters, on further views.

    The outputs of the original batch keep their names, and those of a view have its name as prefix: with ``views(model,
    {"pair": {"image": "pair"}})`` the model runs on ``batch["image"]``, for ``logits``, and with ``batch["pair"]`` in
    its place, for ``pair/logits``. Each view is a separate forward pass, so BatchNorm normalizes each view separately,
    and its running statistics are updated by one view after the other. In inference mode, a view whose entries the
    batch lacks gets the outputs of the original batch, so that batches without views can be evaluated.

    Args:
      model: model from an adapter.
      others: for each further view by name, a mapping from entries that the model reads to the entries to read instead.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: there are no views, or a name is empty or holds a slash. In training, ``apply`` raises it if the batch
        has no such entry.

    >>> import jax.numpy as jnp
    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: jnp.ones((2, 1)), lambda w, x: x @ w, inputs="x")
    >>> both = views(model, {"pair": {"x": "other"}})
    >>> batch = {"x": jnp.ones((1, 2)), "other": jnp.full((1, 2), 3.0)}
    >>> outputs, _ = both.apply(model.init(jax.random.key(0), batch), batch, key=None, train=True)
    >>> {name: float(x[0, 0]) for name, x in outputs.items()}
    {'logits': 2.0, 'pair/logits': 6.0}
    """
    checks.contract("views, model", model, Model)
    check_names("views", others)

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        plain, state = model.apply(variables, batch, key=key, train=train)
        outputs = dict(plain)
        for i, (name, entries) in enumerate(others.items(), 1):
            view_outputs = plain
            if train or all(entry in batch for entry in entries.values()):
                own = None if key is None else jax.random.fold_in(key, i)
                current = Variables(variables.params, state)
                view_outputs, state = model.apply(current, _with(batch, entries), key=own, train=train)
            outputs |= {f"{name}/{output}": x for output, x in view_outputs.items()}
        return outputs, state

    return Model(model.init, apply)


def by_frame(model: Model, *, entry: str = "image") -> Model:
    """Makes a model of images read clips, frame by frame.

    The frames of all clips ``[batch, frames, ...]`` are the model's examples, so that BatchNorm normalizes by all of
    them, and each output ``[batch · frames, ...]`` becomes ``[batch, frames, ...]``. The batch's mask may be over clips
    or over their frames. The model is given the clips, the mask and no other entry of the batch.

    Args:
      model: model from an adapter.
      entry: name of the entry that holds the clips.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: ``init`` and ``apply`` raise it if the batch has no such entry, or no clips there.

    >>> import jax.numpy as jnp
    >>> from jaxkd import adapters
    >>> model = by_frame(adapters.plain(lambda key, x: jnp.ones((2, 1)), lambda w, x: x @ w, inputs="x"), entry="x")
    >>> batch = {"x": jnp.ones((4, 3, 2))}
    >>> model.apply(model.init(jax.random.key(0), batch), batch, key=None, train=False)[0]["logits"].shape
    (4, 3, 1)
    """
    checks.contract("by_frame, model", model, Model)

    def frames(batch: Batch) -> tuple[dict[str, Any], tuple[int, int]]:
        checks.known(entry, checks.shapes({name: x for name, x in batch.items() if name not in RESERVED}), "by_frame")
        clips, mask = batch[entry], batch.get("mask")
        if clips.ndim < 3:
            raise ValueError(f"by_frame, {entry}: expected clips [batch, frames, ...], got {checks.shape(clips)}.")
        shape = (clips.shape[0], clips.shape[1])
        found = {entry: clips.reshape(-1, *clips.shape[2:])}
        if mask is not None:
            found["mask"] = jnp.broadcast_to(mask.reshape(len(mask), -1), shape).reshape(-1)
        return found, shape

    def init(key: Array, batch: Batch) -> Variables:
        return model.init(key, frames(batch)[0])

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        images, shape = frames(batch)
        outputs, state = model.apply(variables, images, key=key, train=train)
        return {name: x.reshape(*shape, *x.shape[1:]) for name, x in outputs.items()}, state

    return Model(init, apply)


def _with(batch: Batch, entries: Mapping[str, str]) -> Batch:
    shapes = checks.shapes({name: x for name, x in batch.items() if name not in RESERVED})
    for entry in entries.values():
        checks.known(entry, shapes, "view, batch entry")
    return {**batch, **{name: batch[entry] for name, entry in entries.items()}}
