"""One model on several inputs of one example: two distortions, a partner of the same class, another modality."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from jaxkd import checks
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables

__all__ = ["reading", "views"]


def reading(model: Model, **entries: str) -> Model:
    """A model that reads other entries of the batch: ``reading(model, image="spectrum")``.

    Cross-modal distillation (Gupta, Hoffman & Malik, 2016) is a teacher and a student that read different entries.

    Args:
      model: from an adapter.
      **entries: for an entry that the model reads, the one that takes its place.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: when it is used: the batch has no such entry.

    >>> import jax.numpy as jnp
    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: jnp.ones((2, 1)), lambda w, x: x @ w, inputs="x")
    >>> other = reading(model, x="y")
    >>> batch = {"x": jnp.ones((1, 2)), "y": jnp.full((1, 2), 3.0)}
    >>> other.apply(other.init(jax.random.key(0), batch), batch, key=None, train=False)[0]["logits"]
    Array([[6.]], dtype=float32)
    """

    def init(key: Array, batch: Batch) -> Variables:
        return model.init(key, _with(batch, entries))

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        return model.apply(variables, _with(batch, entries), key=key, train=train)

    return Model(init, apply)


def views(model: Model, others: Mapping[str, Mapping[str, str]]) -> Model:
    """A model that is run on its batch and, with the same parameters, on other views of the same examples.

    The outputs of the batch as it is keep their names; those of a view are under the view's: with
    ``views(model, {"pair": {"image": "pair"}})`` the model is run on ``batch["image"]``, for ``logits``, and on
    ``batch["pair"]`` in its place, for ``pair/logits``. Each view is a forward pass of its own, so that BatchNorm
    normalises each by itself; its running statistics move by all of them, in their order. In inference mode, a view
    whose entries the batch does not have is that of the batch as it is, so that plain batches can be evaluated.

    Args:
      model: from an adapter.
      others: for each further view, by name, the entries of the batch that take the place of others.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: there are no views, or a name is empty or holds a slash; and when it is applied in training: the
        batch has no such entry.

    >>> import jax.numpy as jnp
    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: jnp.ones((2, 1)), lambda w, x: x @ w, inputs="x")
    >>> both = views(model, {"pair": {"x": "other"}})
    >>> batch = {"x": jnp.ones((1, 2)), "other": jnp.full((1, 2), 3.0)}
    >>> outputs, _ = both.apply(model.init(jax.random.key(0), batch), batch, key=None, train=True)
    >>> {name: float(x[0, 0]) for name, x in outputs.items()}
    {'logits': 2.0, 'pair/logits': 6.0}
    """
    if not others or (wrong := [name for name in others if not name or "/" in name]):
        expected = "names that are not empty and hold no slash" if others else "at least one further view"
        raise ValueError(f"views: expected {expected}, got {wrong if others else 'none'}.")

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        plain, state = model.apply(variables, batch, key=key, train=train)
        outputs = dict(plain)
        for i, (name, entries) in enumerate(others.items(), 1):
            found = plain
            if train or all(entry in batch for entry in entries.values()):
                own = None if key is None else jax.random.fold_in(key, i)
                seen = Variables(variables.params, state)
                found, state = model.apply(seen, _with(batch, entries), key=own, train=train)
            outputs |= {f"{name}/{output}": x for output, x in found.items()}
        return outputs, state

    return Model(model.init, apply)


def _with(batch: Batch, entries: Mapping[str, str]) -> Batch:
    shapes = {name: checks.shape(x) for name, x in batch.items() if name not in ("teacher", "step")}
    for entry in entries.values():
        checks.known(entry, shapes, "view, batch entry")
    return {**batch, **{name: batch[entry] for name, entry in entries.items()}}
