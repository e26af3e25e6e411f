"""A model that takes a batch in parts, so that a batch may be larger than what a device holds the activations of.

Gradient accumulation as it is usual, an average of the micro-batches' gradients, is another method for every loss that
relates examples: a micro-batch has fewer pairs, fewer negatives, another normalisation. Here only the *model* sees
micro-batches. Its outputs are put together again, the objective is computed once and on the whole batch, and automatic
differentiation takes its gradient back through one micro-batch after the other.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import checks
from jaxkd.adapters.conventions import POSITION
from jaxkd.normalization import mapped_axis, positions
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables

__all__ = ["accumulate"]


def accumulate(model: Model, parts: int) -> Model:
    """The same model, run on a batch in micro-batches one after the other: large-batch gradients in a part's memory.

    Gao, Zhang, Han & Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021
    (GradCache), by automatic differentiation: a micro-batch's activations are forgotten after its forward pass and
    computed again in its backward pass. What is kept of the whole batch are the outputs, tapped features among them.
    Loss and gradients are those of the large batch for every objective, masked and relational ones too; the price is a
    second forward pass of the model in training.

    Example i belongs to micro-batch ``i % parts``, so that a batch that is split over devices stays evenly split. A
    batch that does not divide is padded under a mask, and what was padded is cut off again. Entries without a batch
    dimension, such as the step, go to every micro-batch. A BatchNorm normalises each micro-batch by itself (those of
    `jaxkd.normalization.replicas` are divided once more), from the same running statistics, of which the mean is kept.
    Dropout has a key of its own in each.

    Args:
      model: from an adapter; put this wrapper outermost.
      parts: the number of micro-batches.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: the number of parts is not positive; and when it is applied: an entry of the batch or an output of the
        model has not one row per example.

    >>> from jaxkd import adapters
    >>> linear = adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> x = jnp.arange(10.0).reshape(5, 2)
    >>> outputs, _ = accumulate(linear, 2).apply(Variables(jnp.ones((2, 3))), {"x": x}, key=None, train=True)
    >>> outputs["logits"][:, 0]
    Array([ 1.,  5.,  9., 13., 17.], dtype=float32)
    """
    if parts < 1:
        raise ValueError(f"accumulate, parts: expected a positive number of micro-batches, got {parts}.")
    if parts == 1:
        return model

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        size = _size(batch)
        rows = -(-size // parts)
        mask = checks.example_mask(batch)
        given = {**batch, POSITION: positions(mask, size, mapped_axis())}
        if size % parts:
            mask = _padded(jnp.ones(size, bool) if mask is None else mask, rows * parts)
            given = {**given, "mask": mask & (jnp.arange(rows * parts) < size)}
        entries, structure = jax.tree.flatten(given)
        split = {i: _split(x, parts, rows) for i, x in enumerate(entries) if jnp.ndim(x)}

        def micro(variables: Variables, part: dict[int, Array], number: Array) -> tuple[Outputs, PyTree]:
            own = jax.tree.unflatten(structure, [part.get(i, x) for i, x in enumerate(entries)])
            own_key = None if key is None else jax.random.fold_in(key, number)
            outputs, state = model.apply(variables, own, key=own_key, train=train)
            return dict(outputs), state

        # A loop keeps its iterations apart, so the barrier that would is not needed.
        body = jax.checkpoint(micro, prevent_cse=False) if train else micro
        outputs, states = jax.lax.map(lambda x: body(variables, *x), (split, jnp.arange(parts)))
        for name, x in outputs.items():
            if x.shape[1:2] != (rows,):
                raise ValueError(
                    f"accumulate: expected outputs [batch, ...] of the model, a row for each of a part's {rows} "
                    f"examples; got {x.dtype}{list(x.shape[1:])} for {name!r}. Leave it out of the model's outputs."
                )
        whole = {name: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:size] for name, x in outputs.items()}
        return whole, jax.tree.map(_mean, states) if train else variables.state

    return Model(model.init, apply)


def _size(batch: Batch) -> int:
    """The number of examples: the leading dimension of all entries that have one."""
    entries = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(dict(batch))}
    sizes = {x.shape[0] for x in entries.values() if jnp.ndim(x)}
    if len(sizes) != 1:
        raise ValueError(
            "accumulate: expected arrays [batch, ...] with one leading dimension, and scalars; got "
            f"{', '.join(f'batch{path} {checks.shape(x)}' for path, x in entries.items())}."
        )
    return int(sizes.pop())


def _padded(x: Any, rows: int) -> Array:
    """Copies of the last example at the end."""
    x = jnp.asarray(x)
    return jnp.concatenate([x, jnp.repeat(x[-1:], rows - x.shape[0], axis=0)]) if x.shape[0] < rows else x


def _split(x: Any, parts: int, rows: int) -> Array:
    """``[batch, ...]`` as ``[parts, rows, ...]``, strided."""
    x = _padded(x, parts * rows)
    return x.reshape(rows, parts, *x.shape[1:]).swapaxes(0, 1)


def _mean(states: Array) -> Array:
    """Of the states after each part: the mean; counters, which are the same everywhere, stay whole, keys themselves."""
    if jnp.issubdtype(states.dtype, jax.dtypes.extended):
        return states[0]
    if jnp.issubdtype(states.dtype, jnp.inexact):
        return jnp.mean(states, axis=0).astype(states.dtype)
    return jnp.max(states, axis=0)
