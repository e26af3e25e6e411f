"""Resident mode: the whole set on the device, batches gathered there from the step number.

Small sets (CIFAR-100 is 150 MB as uint8) are sent once. A whole epoch is then one `jax.lax.scan` over step numbers,
and several seeds are one `jax.vmap` of it: the host sends nothing more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.data import fingerprint
from jaxkd.data.order import permutation
from jaxkd.data.protocol import Batch, State, count_steps, step_of

if TYPE_CHECKING:
    from jaxtyping import Array, Int

    from jaxkd.data.dataset import Dataset


class Resident:
    """A `Loader` whose batches are a pure function of its arrays and the step.

    Args:
      dataset: the set.
      batch_size: examples in a batch.
      seed: the order of each epoch is a function of it and the epoch's number.
      shuffle: a new order every epoch; False keeps the set's own, as an evaluation wants.
      drop_remainder: leave out what does not fill a batch. Otherwise, where the sizes do not divide, the last
        batch is filled up with other rows of the set and a ``mask``, which every batch then has, is False for them.
      epochs: how many passes `batches` makes; None for no end.
      device: where to put the set; a replicated sharding puts a copy on each device.

    Raises:
      ValueError: no batch can be made of such sizes.

    Attributes:
      arrays: the set on the device, a dict of arrays with one row for each example. Pass it to jitted functions as an
        argument: closed over, it would be copied into the compiled program.
      batch_size: examples in a batch.
      steps_per_epoch: batches in one pass.
      num_examples: in the set.
      padded: the last batch of a pass is filled up, and every batch has a ``mask``.

    >>> from jaxkd.data.dataset import load
    >>> resident = Resident(load("digits", "train"), batch_size=64, seed=0)
    >>> @jax.jit
    ... def epoch(arrays, first):  # the arrays are an argument, so they are not compiled into the program
    ...     def step(total, number):
    ...         batch = resident.gather(arrays, number)
    ...         return total + jnp.sum(batch["mask"]), None
    ...     return jax.lax.scan(step, 0, first + jnp.arange(resident.steps_per_epoch))[0]
    >>> int(epoch(resident.arrays, 0))
    1097
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        drop_remainder: bool = False,
        epochs: int | None = None,
        device: jax.Device | jax.sharding.Sharding | None = None,
    ) -> None:
        self.num_examples = len(dataset.arrays["index"])
        self.steps_per_epoch = count_steps(self.num_examples, batch_size, drop_remainder)
        self.padded = self.steps_per_epoch * batch_size > self.num_examples
        self.batch_size, self.seed, self.shuffle, self.epochs = batch_size, seed, shuffle, epochs
        self.arrays: dict[str, jax.Array] = jax.device_put(dict(dataset.arrays), device)
        self._gather = jax.jit(self.gather)

    def gather(self, arrays: Mapping[str, Array], step: Int[Array, ""] | int, *, seed: Any = None) -> Batch:
        """The batch of a step: pure, for use under jit, scan and vmap.

        Args:
          arrays: `Resident.arrays`, as the argument of the jitted function.
          step: the global step, counted from the start of training through all epochs; it may be traced.
          seed: in place of the loader's own, perhaps traced: ``vmap`` over it trains several runs in different orders.

        Returns:
          The set's arrays at this batch's rows; ``epoch`` int32 ``[batch]``; and ``mask`` bool ``[batch]`` if `padded`.
        """
        step = jnp.asarray(step, jnp.int32)
        epoch = step // self.steps_per_epoch
        position = (step % self.steps_per_epoch) * self.batch_size + jnp.arange(self.batch_size, dtype=jnp.int32)
        rows = position % self.num_examples if self.padded else position
        if self.shuffle:
            seed = self.seed if seed is None else seed
            rows = permutation(rows, size=self.num_examples, seed=seed, epoch=epoch)
        batch = {key: value.at[rows].get(mode="promise_in_bounds") for key, value in arrays.items()}
        batch["epoch"] = jnp.broadcast_to(epoch, position.shape)
        if self.padded:
            batch["mask"] = position < self.num_examples
        return batch

    def fingerprint(self) -> dict[str, Any]:
        """What tells this input from another, for a run that must go on with the same one: settings and content.

        Returns:
          A dict for JSON. What a `Stream` of the same set gives as well is equal to its.

        >>> from jaxkd.data.dataset import load
        >>> Resident(load("digits", "test"), batch_size=50).fingerprint()["examples"]
        400
        """
        found: dict[str, Any] = {
            "examples": self.num_examples, "seed": self.seed, "shuffle": self.shuffle, "padded": self.padded
        }  # fmt: skip
        if all(value.is_fully_addressable or value.is_fully_replicated for value in self.arrays.values()):
            arrays = {key: np.asarray(value) for key, value in self.arrays.items()}
            found |= {"first_and_last": fingerprint.of_rows(arrays), "content": fingerprint.digest(arrays)}
        return found

    def batches(self, state: Mapping[str, Any] | None = None) -> ResidentIterator:
        """Batches one by one, for a loop on the host.

        Args:
          state: of an earlier iterator, or ``{"step": n}``; from the start without it.

        Returns:
          The iterator; its state is ``{"step": n}``.
        """
        return ResidentIterator(self, state)

    def __iter__(self) -> ResidentIterator:
        """The same as ``batches()``."""
        return self.batches()


class ResidentIterator:
    """A `BatchIterator` over a `Resident`.

    Args:
      resident: the loader.
      state: where to start; the beginning by default.
    """

    def __init__(self, resident: Resident, state: Mapping[str, Any] | None = None) -> None:
        self._resident = resident
        self._step = 0 if state is None else step_of(state)

    def __iter__(self) -> ResidentIterator:
        """Returns itself."""
        return self

    def __next__(self) -> Batch:
        """The next batch."""
        epochs = self._resident.epochs
        if epochs is not None and self._step >= epochs * self._resident.steps_per_epoch:
            raise StopIteration
        batch: Batch = self._resident._gather(self._resident.arrays, self._step)
        self._step += 1
        return batch

    def get_state(self) -> State:
        """``{"step": n}``: how many batches were returned since the start of training."""
        return {"step": self._step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to the step of a state."""
        self._step = step_of(state)

    def close(self) -> None:
        """Nothing reads ahead, so there is nothing to end."""
