"""Batch transforms of any modality: their keys and their composition.

A transform is a function from batch to batch; bind its arguments with `functools.partial` and chain with `compose`.

A random transform draws with the keys of `example_keys`, which depend on ``(seed, epoch, index, view)`` alone: not on
the batch that holds the example, its position there, or the number of devices. So each draw can be replayed. A resumed
run sees what an uninterrupted one would have seen, and a cache of teacher outputs can be filled in another order than
the one in which it is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.types import Batch

Transform = Callable[[Batch], dict[str, Any]]


def example_keys(batch: Batch, *, seed: Any, view: int = 0) -> jax.Array:
    """Returns a random key per example.

    The key is ``fold_in(fold_in(fold_in(key(seed), epoch), index), view)``.

    Args:
      batch: batch with ``index`` and ``epoch``, integers ``[batch]``.
      seed: seed of the run, an integer; it may be traced, to map over seeds.
      view: number of the draw, where an example is drawn several times in an epoch.

    Returns:
      Typed keys ``[batch]``.

    Raises:
      ValueError: the batch has no ``index`` or no ``epoch``.

    >>> batch = {"index": jnp.array([4, 7]), "epoch": jnp.array([0, 0])}
    >>> example_keys(batch, seed=0).shape
    (2,)
    """
    missing = [key for key in ("index", "epoch") if key not in batch]
    if missing:
        raise ValueError(
            f"batch: random transforms draw by example and need {missing} (integers [batch]), got entries "
            f"{sorted(batch)}. Resident and Stream give both: 'index' is the example's fixed position in its set, "
            "'epoch' the number of the pass."
        )
    # Threefry by name: the draws of another default generator may depend on the position in a vmapped batch.
    root = jax.random.key(seed, impl="threefry2x32")

    def example_key(epoch: Any, index: Any) -> Any:
        return jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(root, epoch), index), view)

    return jax.vmap(example_key)(jnp.asarray(batch["epoch"]), jnp.asarray(batch["index"]))


def compose(*transforms: Transform) -> Transform:
    """Returns one transform that applies several from left to right.

    Without transforms it copies the batch.

    >>> from functools import partial
    >>> from jaxkd import data
    >>> augment = compose(partial(data.shift, seed=0), partial(data.normalize, mean=(0.5,), std=(0.5,)))
    >>> batch = {"image": jnp.ones((2, 8, 8, 1), jnp.uint8), "index": jnp.arange(2), "epoch": jnp.zeros(2, int)}
    >>> augment(batch)["image"].dtype.name
    'float32'
    """
    return _Composed(transforms)


@dataclasses.dataclass(frozen=True)
class _Composed:
    """Several transforms as one: a class, so that a run's identity can list the parts."""

    transforms: tuple[Transform, ...]

    def __call__(self, batch: Batch) -> dict[str, Any]:
        for transform in self.transforms:
            batch = transform(batch)
        return dict(batch)
