"""Gradient accumulation that is exact for every objective, relational ones too.

Averaging the gradients of micro-batches changes every loss that relates examples: a micro-batch has fewer pairs and
negatives, and another normalization. Here only the *model* runs on micro-batches, and the objective sees all outputs.

How it works (two forward passes). Forward: `jax.lax.map` runs the model on one micro-batch after the other and keeps
the outputs alone; `jax.checkpoint` discards the activations. The caller computes the objective once, on the outputs of
the whole batch. Backward: automatic differentiation gives the cotangent of every output, then transposes the loop; each
iteration recomputes its micro-batch's activations, pulls its rows of the cotangent back to the parameters, and adds the
result to the gradient. The peak memory is that of one micro-batch, all outputs and one gradient.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core import batches, checks
from jaxkd._core.axes import data_axis, positions
from jaxkd.types import POSITION, Array, Batch, Model, Outputs, PyTree, Variables


def accumulate(model: Model, micro_batches: int) -> Model:
    """Runs a model on micro-batches, with the gradients of the whole batch.

    Gao, Zhang, Han & Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021
    (GradCache), by automatic differentiation. Loss and gradients are those of the whole batch for every objective,
    masked and relational ones included. The outputs of the whole batch, tapped features among them, stay in memory; the
    price is a second forward pass of the model in training.

    Example i belongs to micro-batch ``i % parts``, so that a batch that is split over devices stays evenly split. A
    batch that does not divide is padded under a mask, and the padding is removed from the outputs. Entries without a
    batch dimension, such as the step, reach every micro-batch. BatchNorm normalizes each micro-batch separately (within
    each replica, see `jaxkd.parallel.jit`), always from the same running statistics; the new ones are averaged. Dropout
    draws from a separate key in each micro-batch.

    Args:
      model: model from an adapter; apply this wrapper last.
      micro_batches: the number of micro-batches.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: the number of parts is not positive. ``apply`` raises it if an entry of the batch or an output of the
        model does not have one row per example.

    >>> from jaxkd import adapters
    >>> linear = adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> x = jnp.arange(10.0).reshape(5, 2)
    >>> outputs, _ = accumulate(linear, 2).apply(Variables(jnp.ones((2, 3))), {"x": x}, key=None, train=True)
    >>> outputs["logits"][:, 0]
    Array([ 1.,  5.,  9., 13., 17.], dtype=float32)
    """
    checks.contract("accumulate, model", model, Model)
    if micro_batches < 1:
        raise ValueError(f"accumulate, micro_batches: expected a positive number, got {micro_batches}.")
    if micro_batches == 1:
        return model

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        size = _size(batch)
        rows = -(-size // micro_batches)
        mask = batches.example_mask(batch)
        # Positions in the whole batch: random directions of examples must not depend on the number of parts.
        given = {**batch, POSITION: positions(mask, size, data_axis())}
        if size % micro_batches:
            whole_mask = _padded(jnp.ones(size, bool) if mask is None else batch["mask"], rows * micro_batches)
            given = batches.exclude({**given, "mask": whole_mask}, jnp.arange(rows * micro_batches) < size)
        entries, structure = jax.tree.flatten(given)
        split = {i: _split(x, micro_batches, rows) for i, x in enumerate(entries) if jnp.ndim(x)}

        def micro(variables: Variables, part: dict[int, Array], number: Array) -> tuple[Outputs, PyTree]:
            own = jax.tree.unflatten(structure, [part.get(i, x) for i, x in enumerate(entries)])
            own_key = None if key is None else jax.random.fold_in(key, number)
            outputs, state = model.apply(variables, own, key=own_key, train=train)
            return dict(outputs), state

        # prevent_cse guards against merging recomputation and forward pass; across two loops XLA cannot merge them.
        body = jax.checkpoint(micro, prevent_cse=False) if train else micro
        outputs, states = jax.lax.map(lambda x: body(variables, *x), (split, jnp.arange(micro_batches)))
        for name, x in outputs.items():
            if x.shape[1:2] != (rows,):
                raise ValueError(
                    f"accumulate: expected model outputs [batch, ...] with one row for each of a part's {rows} "
                    f"examples, got {x.dtype}{list(x.shape[1:])} for {name!r}. Remove it from the model's outputs."
                )
        # Inverts the strided split of `_split`, and drops the padding.
        whole = {name: x.swapaxes(0, 1).reshape(-1, *x.shape[2:])[:size] for name, x in outputs.items()}
        return whole, jax.tree.map(_mean, states) if train else variables.state

    return Model(model.init, apply)


def _size(batch: Batch) -> int:
    """Returns the number of examples, which all entries that are not scalars share."""
    entries = {jax.tree_util.keystr(path): x for path, x in jax.tree_util.tree_leaves_with_path(dict(batch))}
    sizes = {x.shape[0] for x in entries.values() if jnp.ndim(x)}
    if len(sizes) != 1:
        raise ValueError(
            "accumulate: expected arrays [batch, ...] with one leading dimension, and scalars; got "
            f"{', '.join(f'batch{path} {checks.shape(x)}' for path, x in entries.items())}."
        )
    return int(sizes.pop())


def _padded(x: Any, rows: int) -> Array:
    """Appends copies of the last example."""
    x = jnp.asarray(x)
    return jnp.concatenate([x, jnp.repeat(x[-1:], rows - x.shape[0], axis=0)]) if x.shape[0] < rows else x


def _split(x: Any, parts: int, rows: int) -> Array:
    """Reshapes ``[batch, ...]`` to ``[parts, rows, ...]``, with a stride of ``parts``."""
    x = _padded(x, parts * rows)
    return x.reshape(rows, parts, *x.shape[1:]).swapaxes(0, 1)


def _mean(states: Array) -> Array:
    """Averages the states after each part; takes the maximum of counters and one key."""
    if jnp.issubdtype(states.dtype, jax.dtypes.extended):
        return states[0]
    if jnp.issubdtype(states.dtype, jnp.inexact):
        return jnp.mean(states, axis=0).astype(states.dtype)
    return jnp.max(states, axis=0)
