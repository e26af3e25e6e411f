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

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd._core import batch_norm, batches, checks
from jaxkd._core.axes import data_axis, positions
from jaxkd.types import POSITION, Array, Batch, Model, Outputs, PyTree, Variables


def accumulate(model: Model, micro_batches: int) -> Model:
    """Runs a model on micro-batches, with the gradients of the whole batch.

    Gao, Zhang, Han & Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021
    (GradCache), by automatic differentiation. Loss and gradients are those of the whole batch for every objective,
    masked and relational ones included. The outputs of the whole batch, tapped features among them, stay in memory; the
    price is a second forward pass of the model in training.

    Example i of a replica (see `jaxkd.parallel.jit`) belongs to micro-batch ``i % parts``, so that a batch that is
    split over devices stays evenly split, and the numbers are those of one device. A batch that does not divide is
    padded under a mask, and the padding is removed from the outputs. Entries without a batch dimension, such as the
    step, reach every micro-batch. BatchNorm normalizes each micro-batch separately (within each replica), always from
    the same running statistics; the new ones are averaged over the micro-batches that hold an unmasked example. Dropout
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
        size, mask = _size(batch), batches.example_mask(batch)
        # Only training depends on which examples share a micro-batch: by the statistics of BatchNorm.
        share = batch_norm.share_of(mask, data_axis(), size) if train else batch_norm.Share(mask, None)
        split = _Split.of(size, micro_batches, share)
        # Positions in the whole batch: random directions of examples must not depend on the number of parts.
        given = {**batch, POSITION: positions(mask, size, data_axis())}
        entries, structure = jax.tree.flatten(given)
        parts = {i: split.into(x) for i, x in enumerate(entries) if jnp.ndim(x)}
        masks = split.masks(batch.get("mask"))

        def micro(
            variables: Variables, part: dict[int, Array], mask: Array | None, number: Array
        ) -> tuple[Outputs, PyTree]:
            own = jax.tree.unflatten(structure, [part.get(i, x) for i, x in enumerate(entries)])
            own_key = None if key is None else jax.random.fold_in(key, number)
            with batch_norm.pace(factors):
                outputs, state = model.apply(
                    variables, own if mask is None else {**own, "mask": mask}, key=own_key, train=train
                )
            return dict(outputs), state

        filled, factors = split.filled(masks, share) if train else (None, None)
        # prevent_cse guards against merging recomputation and forward pass; across two loops XLA cannot merge them.
        body = jax.checkpoint(micro, prevent_cse=False) if train else micro
        outputs, states = jax.lax.map(lambda x: body(variables, *x), (parts, masks, jnp.arange(micro_batches)))
        for name, x in outputs.items():
            if x.shape[1:2] != (split.groups * split.rows,):
                raise ValueError(
                    "accumulate: expected model outputs [batch, ...] with one row for each of a part's "
                    f"{split.groups * split.rows} examples, got {x.dtype}{list(x.shape[1:])} for {name!r}. Remove it "
                    "from the model's outputs."
                )
        whole = {name: split.whole(x) for name, x in outputs.items()}
        if not train:
            return whole, variables.state
        return whole, jax.tree.map(lambda new, old: _mean(new, old, filled), states, variables.state)

    return Model(model.init, apply)


class _Split(NamedTuple):
    """Assignment of this device's examples to micro-batches.

    Example i of a replica belongs to micro-batch ``i % parts``. A replica (`batch_norm.Share`) is divided by itself, so
    that the micro-batches, and with them the statistics of BatchNorm, are those of any number of devices. Where a
    replica spans devices, its example numbers continue over them: this device's begin with ``shift``.

    Attributes:
      size: number of examples on this device.
      parts: number of micro-batches.
      groups: number of replicas on this device.
      rows: number of examples of a replica in a micro-batch, with padding.
      shift: micro-batch of this device's first example; 0, or an array that differs between devices.
    """

    size: int
    parts: int
    groups: int
    rows: int
    shift: Any

    @classmethod
    def of(cls, size: int, parts: int, share: batch_norm.Share) -> _Split:
        groups = share.groups if size % share.groups == 0 else 1  # else the first BatchNorm reports it
        own, longest = size // groups, 0
        shift: Any = 0
        if share.devices > 1 and own % parts:
            shift = jax.lax.axis_index(share.axis_name) % share.devices * own % parts
            longest = parts - math.gcd(own, parts)
        return cls(size, parts, groups, -(-(own + longest) // parts), shift)

    @property
    def is_padded(self) -> bool:
        """True if the parts hold more rows than there are examples."""
        return self.groups * self.rows * self.parts > self.size

    def into(self, x: Any) -> Array:
        """Reshapes ``[batch, ...]`` to ``[parts, groups * rows, ...]``.

        Copies of a replica's last example pad it.
        """
        x = jnp.asarray(x)
        x = x.reshape(self.groups, self.size // self.groups, *x.shape[1:])
        if self.is_padded:
            missing = self.rows * self.parts - x.shape[1]
            x = jnp.concatenate([x, jnp.repeat(x[:, -1:], missing, axis=1)], axis=1)
            x = x if isinstance(self.shift, int) else jnp.roll(x, self.shift, axis=1)
        x = jnp.moveaxis(x.reshape(self.groups, self.rows, self.parts, *x.shape[2:]), 2, 0)
        return x.reshape(self.parts, self.groups * self.rows, *x.shape[3:])

    def whole(self, x: Array) -> Array:
        """Inverts `into`."""
        x = jnp.moveaxis(x.reshape(self.parts, self.groups, self.rows, *x.shape[2:]), 0, 2)
        x = x.reshape(self.groups, self.rows * self.parts, *x.shape[3:])
        x = x if isinstance(self.shift, int) else jnp.roll(x, -self.shift, axis=1)
        return x[:, : self.size // self.groups].reshape(self.size, *x.shape[2:])

    def masks(self, mask: Any) -> Array | None:
        """Returns the parts' masks, which exclude the padding; None includes all rows."""
        if not self.is_padded:
            return None if mask is None else self.into(mask)
        number = jnp.arange(self.rows * self.parts) - self.shift  # of this device's examples of a replica
        real = (number >= 0) & (number < self.size // self.groups)
        real = jnp.tile(real.reshape(self.rows, self.parts).T, (1, self.groups))
        if mask is None:
            return real
        split = self.into(mask)
        return split & real.reshape(*real.shape, *(1 for _ in split.shape[2:]))

    def filled(self, masks: Array | None, share: batch_norm.Share) -> tuple[Array | None, Array | None]:
        """Returns the parts with an unmasked example, and the replicas' `batch_norm.pace`."""
        if masks is None:
            return None, None
        held = jnp.any(masks.reshape(self.parts, self.groups, -1), axis=2)
        if share.devices > 1:
            held = batch_norm.over_devices(held.astype(jnp.int32), share) > 0
        filled = jnp.any(held, axis=1)
        return filled, None if self.groups == 1 else jnp.sum(filled) / jnp.maximum(jnp.sum(held, axis=0), 1)


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


def _mean(states: Array, old: Array, filled: Array | None) -> Array:
    """Averages the states after each part that holds an unmasked example.

    Of counters it takes the maximum, and of keys one. Without such a part, and where no part changed it, it is the old
    state, whose sum over the parts may be infinite.
    """
    if jnp.issubdtype(states.dtype, jax.dtypes.extended):
        return states[0]
    if not jnp.issubdtype(states.dtype, jnp.inexact):
        return jnp.max(states, axis=0)
    if filled is None:
        mean = jnp.mean(states, axis=0)
    else:
        used = filled.reshape(-1, *(1 for _ in states.shape[1:]))
        mean = jnp.sum(jnp.where(used, states, 0), axis=0) / jnp.maximum(jnp.sum(filled), 1)
        mean = jnp.where(jnp.any(filled), mean, old)
    return jnp.where(jnp.all(states == old[None], axis=0), old, mean).astype(states.dtype)
