"""Selection and replacement of the examples of a batch that a sampler makes.

A fraction ``t / D`` of the examples is selected by systematic sampling: the example at position p of the whole batch is
selected where ``(t p + u) mod D >= D - t``, for one draw u of the step from 0 to D - 1. Each example then has the
probability t / D, and of any n consecutive ones at most ⌈n t / D⌉ are selected. The sampler can therefore run on that
many rows, a number known when the step is compiled. Rows are taken from equal blocks of consecutive examples, so that
the compiler splits them over devices as it does the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd._core import batches, checks
from jaxkd._core.axes import gather, mark_varying
from jaxkd._core.model_calls import refuse_entries
from jaxkd.types import RESERVED, Array, Batch, PyTree

_MASK = "mask"
_FINEST = 10_000  # of the denominator, so that products of two numbers below it fit into 32 bits


def fraction_of(what: str, fraction: Any) -> Fraction:
    """Returns a number from 0 to 1 as the ratio of two small numbers.

    Raises:
      TypeError: it is no number, or one that is not known when the step is compiled.
      ValueError: it is outside of [0, 1].

    >>> fraction_of("f", 0.3)
    Fraction(3, 10)
    """
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float, Fraction)):
        raise TypeError(
            f"{what}, fraction: expected a Python number from 0 to 1, since the number of rows that are generated is "
            f"part of the compiled step, got {checks.kind(fraction)}."
        )
    if not 0 <= fraction <= 1:
        raise ValueError(f"{what}, fraction: expected a number from 0 to 1, got {fraction}.")
    return Fraction(fraction).limit_denominator(_FINEST)


class Selection(NamedTuple):
    """The examples that are replaced, and the rows in which they are made.

    Attributes:
      chosen: ``bool[batch]``, True for an example that is replaced.
      share: the fraction of the examples.
    """

    chosen: Array
    share: Fraction

    @classmethod
    def draw(cls, key: Array, places: Array, included: Array | None, share: Fraction) -> Selection:
        """Selects a fraction of the included examples by their places in the whole batch.

        >>> Selection.draw(jax.random.key(0), jnp.arange(6), None, Fraction(1, 3)).chosen.tolist()
        [False, True, False, False, True, False]
        """
        part, whole = share.numerator, share.denominator
        shift = jax.random.randint(key, (), 0, whole)
        chosen = (places % whole * part + shift) % whole >= whole - part
        return cls(chosen if included is None else chosen & included, share)

    def take(self, tree: Any) -> Any:
        """Returns the rows of the chosen examples ``[rows, ...]``, filled up with others."""
        return tree if self.share == 1 else jax.tree.map(lambda x: self._taken(jnp.asarray(x)), tree)

    def put(self, tree: Any) -> Any:
        """Inverts `take` for the chosen examples; other rows have arbitrary values."""
        return tree if self.share == 1 else jax.tree.map(self._whole, tree)

    def _taken(self, x: Array) -> Array:
        blocks, rows = self._blocks_and_rows()
        first = jnp.argsort(~self.chosen.reshape(blocks, -1), axis=1, stable=True)[:, : rows // blocks]
        taken = jax.vmap(lambda block, i: block[i])(x.reshape(blocks, -1, *x.shape[1:]), first)
        return taken.reshape(rows, *x.shape[1:])

    def _whole(self, x: Array) -> Array:
        blocks, rows = self._blocks_and_rows()
        row = jnp.cumsum(self.chosen.reshape(blocks, -1), axis=1) - 1
        row = jnp.clip(row, 0, rows // blocks - 1)
        whole = jax.vmap(lambda block, i: block[i])(x.reshape(blocks, -1, *x.shape[1:]), row)
        return whole.reshape(-1, *x.shape[1:])

    def _blocks_and_rows(self) -> tuple[int, int]:
        """Returns the number of blocks of consecutive examples, and that of all rows.

        They are as many blocks of one size as there can be without more than ⌈batch · share⌉ rows.
        """
        size = len(self.chosen)
        rows = math.ceil(size * self.share)
        divisors = (n for n in range(1, size + 1) if size % n == 0)
        return max(n for n in divisors if n * math.ceil(size // n * self.share) == rows), rows


def keys_of(key: Array, places: Array) -> Array:
    """Returns a key for each example, from its place in the batch or its index."""
    return jax.vmap(lambda place: jax.random.fold_in(key, place))(places)


def entries_of(what: str, generate: Callable[..., Mapping[str, Any]], *args: Any, keys: Array) -> dict[str, Array]:
    """Returns what a sampler makes, without gradients.

    The step itself may be differentiated.

    Raises:
      ValueError: an entry does not have a row for each key.
    """
    made = dict(jax.lax.stop_gradient(generate(*jax.lax.stop_gradient(args), keys=keys)))
    for name, x in made.items():
        if getattr(x, "shape", ())[:1] != keys.shape[:1]:
            raise ValueError(
                f"{what}, generate: expected entries [batch, ...] with a row for each of the {len(keys)} examples that "
                f"it is given, got {checks.shape(x)} for {name!r}."
            )
    return made


def stored(bank: PyTree, made: PyTree, rows: Array, axis_name: str | None) -> PyTree:
    """Returns a bank whose rows are replaced by those that all devices have made.

    Every device holds the whole bank. Rows beyond its end are left out.
    """
    made, rows = jax.tree.map(lambda x: gather(x, axis_name), (made, rows))
    return jax.tree.map(lambda old, new: old.at[rows].set(new, mode="drop"), bank, made)


def varying(branch: Callable[[], tuple[PyTree, PyTree]], axis_name: str | None) -> Callable[[], tuple[PyTree, PyTree]]:
    """Returns a branch whose first result is typed as varying over the devices.

    Branches of `jax.lax.switch` need results of one type.
    """

    def run() -> tuple[PyTree, PyTree]:
        own, shared = branch()
        return jax.tree.map(lambda x: mark_varying(x, axis_name), own), shared

    return run


def replace(what: str, batch: Batch, made: Mapping[str, Any], chosen: Array, *, every: bool = False) -> dict[str, Any]:
    """Returns the batch in which the chosen examples have the entries that were made.

    Args:
      what: name of the scheme, for error messages.
      batch: the batch.
      made: entries ``[batch, ...]`` of all examples, arbitrary for those that are not chosen.
      chosen: ``bool[batch]``.
      every: whether all examples but masked ones are chosen, so that the entries may be new.

    Raises:
      ValueError: an entry does not fit that of the batch.
    """
    refuse_entries(f"{what}, entry that was made", made, RESERVED)
    whole = dict(batch)
    for name, new in made.items():
        if name == _MASK:
            continue
        old = jnp.asarray(batch[name]) if name in batch else None
        if old is None and not every:
            raise ValueError(
                f"{what}: expected entries that the batch has, since examples that are not made keep theirs; "
                f"{name!r} {checks.shape(new)} is not in {checks.describe(batch)}. Add it to the data, for instance "
                "zeros by jaxkd.distillers.preprocess, or make every example."
            )
        if old is not None and (old.shape != new.shape or _kind(old) != _kind(new)):
            raise ValueError(
                f"{what}: expected an entry like that of the batch, {name!r} {checks.shape(old)}, got "
                f"{checks.shape(new)}. What is made fills the shape of the data: pad it, and mask the padding."
            )
        whole[name] = new if old is None else jnp.where(rows_of(chosen, new.ndim), new, old)
    return _masked(what, whole, made.get(_MASK), chosen)


def _masked(what: str, batch: dict[str, Any], new: Any, chosen: Array) -> dict[str, Any]:
    """Returns the batch with the mask of the examples that were made."""
    old = batch.get(_MASK)
    if new is None:
        if old is not None and old.ndim > 1:
            raise ValueError(
                f"{what}: expected a {_MASK!r} among the entries that are made, as the batch has one over tokens, "
                f"{checks.shape(old)}, which describes the sequences that are replaced."
            )
        return batch
    batches.example_mask({_MASK: new})  # raises unless it is a mask
    if old is None:
        old = jnp.ones(new.shape[:1], bool)
    if old.ndim > new.ndim or old.shape != new.shape[: old.ndim]:
        raise ValueError(
            f"{what}: expected a {_MASK!r} like that of the batch, {checks.shape(old)}, got {checks.shape(new)}."
        )
    return {**batch, _MASK: jnp.where(rows_of(chosen, new.ndim), new, rows_of(old, new.ndim))}


def rows_of(x: Array, rank: int) -> Array:
    """Appends axes to an array, up to a rank."""
    return jnp.expand_dims(x, tuple(range(x.ndim, rank)))


def _kind(x: Any) -> Any:
    """Returns the kind of an array's values; integers of all widths are of one."""
    kinds = (jnp.integer, jnp.floating)
    return next((kind for kind in kinds if jnp.issubdtype(x.dtype, kind)), x.dtype)
