"""Batches of several seeds at once, each from its own images and in its own order."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.data._fingerprint import digest
from jaxkd.types import Batch


class Seeds:
    """An input for `jaxkd.training.fit` whose batches are those of all seeds, ``[seeds, batch, ...]``.

    Args:
      loaders: one for each seed, on the device, alike but for the images.
      numbers: of the seeds, which decide the order.

    Attributes:
      arrays: what `gather` needs on the device.
      batch_size: examples in a seed's batch.
      steps_per_epoch: batches in a pass.
    """

    def __init__(self, loaders: Sequence[Any], numbers: Sequence[int]) -> None:
        self._one = loaders[0]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *[loader.arrays for loader in loaders])
        self.arrays: dict[str, Any] = {"sets": stacked, "seed": jnp.asarray(numbers, jnp.uint32)}
        self.batch_size, self.steps_per_epoch = self._one.batch_size, self._one.steps_per_epoch

    def gather(self, arrays: dict[str, Any], step: Any) -> Batch:
        """The batches of all seeds at a step."""
        seeded = "seed" in inspect.signature(self._one.gather).parameters

        def one(own: Any, seed: Any) -> Batch:
            batch: Batch = self._one.gather(own, step, **({"seed": seed} if seeded else {}))
            return batch

        batch: Batch = jax.vmap(one)(arrays["sets"], arrays["seed"])
        return batch

    def fingerprint(self) -> dict[str, Any]:
        """What the data is, of all seeds."""
        arrays = {str(i): x for i, x in enumerate(jax.tree.leaves(self.arrays["sets"]))}
        return {"sets": digest(arrays), "seeds": self.arrays["seed"].tolist()}

    def batches(self, state: Any = None) -> Iterator[Batch]:
        """The batches one after the other."""
        first = state["step"] if state else 0
        return (self.gather(self.arrays, step) for step in itertools.count(first))
