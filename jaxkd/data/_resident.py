"""Resident mode: the set lies on the device, and the step selects a batch there.

Small sets (CIFAR-100 takes 150 MB as uint8) are transferred once. An epoch is then one `jax.lax.scan` over step
numbers, and several seeds are one `jax.vmap` of it, without further transfers from the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core.batches import exclude
from jaxkd.data import _fingerprint
from jaxkd.data._dataset import arrays_of
from jaxkd.data._order import permutation
from jaxkd.data._protocol import Batch, State, count_steps, step_of, with_epoch

if TYPE_CHECKING:
    from jaxtyping import Array, Int

    from jaxkd.data._dataset import Dataset


class DeviceLoader:
    """Base of the loaders whose batches are computed on the device from the step.

    A subclass sets these attributes, and ``_gather``, the jitted ``(arrays, step) -> batch``.
    """

    arrays: Any
    batch_size: int
    steps_per_epoch: int
    epochs: int | None
    _gather: Callable[..., Batch]

    def batches(self, state: Mapping[str, Any] | None = None) -> ResidentIterator:
        """Returns an iterator over batches, from the start or a state ``{"step": n}``."""
        return ResidentIterator(self, state)

    def __iter__(self) -> ResidentIterator:
        """Equivalent to ``batches()``."""
        return self.batches()


class Resident(DeviceLoader):
    """A `Loader` whose batches are a pure function of its arrays and the step.

    Args:
      dataset: set to draw from, or a dict of arrays of any kind with one row per example, which get an ``index``.
      batch_size: examples in a batch.
      seed: seed of the order; the order of an epoch is a function of the seed and the epoch's number.
      shuffle: whether each epoch has a new order; False keeps the set's order, as for evaluation.
      drop_remainder: whether to leave out the last examples of an epoch when they do not fill a batch. Otherwise the
        last batch is filled up with other rows of the set, and every batch gets a ``mask``, False for those rows.
      epochs: number of epochs after which `batches` stops; None for no end.
      device: device or sharding of the set; a replicated sharding puts a copy on each device.

    Raises:
      TypeError: an array holds strings or objects.
      ValueError: a size is not positive, or no batch can be filled.

    Attributes:
      arrays: the set on the device, a dict of arrays with one row per example. Pass it to jitted functions as an
        argument: a closure over it would copy it into the compiled program.
      batch_size: examples in a batch.
      steps_per_epoch: batches in one epoch.
      num_examples: examples in the set.
      padded: whether the last batch of an epoch is filled up, so that every batch has a ``mask``.

    >>> from jaxkd import data
    >>> resident = Resident(data.load("digits", "train"), batch_size=64, seed=0)
    >>> @jax.jit
    ... def epoch(arrays, first):  # the arrays are an argument, hence no constants of the program
    ...     def step(total, number):
    ...         batch = resident.gather(arrays, number)
    ...         return total + jnp.sum(batch["mask"]), None
    ...     return jax.lax.scan(step, 0, first + jnp.arange(resident.steps_per_epoch))[0]
    >>> int(epoch(resident.arrays, 0))
    1097
    """

    def __init__(
        self,
        dataset: Dataset | Mapping[str, Any],
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        drop_remainder: bool = False,
        epochs: int | None = None,
        device: jax.Device | jax.sharding.Sharding | None = None,
    ) -> None:
        arrays = arrays_of(dataset)
        for name, array in arrays.items():
            if array.dtype.kind in "OSU":
                raise TypeError(
                    f"{name!r}: expected numbers, which a device can hold, got {array.dtype} (strings or objects). "
                    "Leave the entry out, or convert it: classes by np.unique(..., return_inverse=True), text by "
                    "jaxkd.data.text."
                )
        self.num_examples = len(arrays["index"])
        self.steps_per_epoch = count_steps(self.num_examples, batch_size, drop_remainder)
        self.padded = self.steps_per_epoch * batch_size > self.num_examples
        self.batch_size, self.seed, self.shuffle, self.epochs = batch_size, seed, shuffle, epochs
        self.arrays = jax.device_put(arrays, device)
        self._gather = jax.jit(self.gather)

    def gather(self, arrays: Mapping[str, Array], step: Int[Array, ""] | int, *, seed: Any = None) -> Batch:
        """Returns the batch of a step, as a pure function for jit, scan and vmap.

        Args:
          arrays: `Resident.arrays`, passed to the jitted function as an argument.
          step: global step, counted from the start of training through all epochs; it may be traced.
          seed: seed that replaces the loader's; it may be traced, so that a ``vmap`` trains in several orders.

        Returns:
          The rows of this batch, ``epoch`` int32 ``[batch]``, and ``mask`` bool ``[batch]`` if `padded`.
        """
        step = jnp.asarray(step, jnp.int32)
        epoch = step // self.steps_per_epoch
        position = (step % self.steps_per_epoch) * self.batch_size + jnp.arange(self.batch_size, dtype=jnp.int32)
        rows = position % self.num_examples if self.padded else position
        if self.shuffle:
            seed = self.seed if seed is None else seed
            rows = permutation(rows, num_examples=self.num_examples, seed=seed, epoch=epoch)
        batch = {key: value.at[rows].get(mode="promise_in_bounds") for key, value in arrays.items()}
        batch = with_epoch(batch, jnp.broadcast_to(epoch, position.shape))
        return exclude(batch, position < self.num_examples) if self.padded else batch

    def fingerprint(self) -> dict[str, Any]:
        """Returns the settings and digests by which a resumed run recognizes its input.

        JSON can represent them. The entries in common with a `Stream` of the same set are equal.

        >>> from jaxkd import data
        >>> Resident(data.load("digits", "test"), batch_size=50).fingerprint()["examples"]
        400
        """
        result: dict[str, Any] = {
            "examples": self.num_examples, "seed": self.seed, "shuffle": self.shuffle, "padded": self.padded
        }  # fmt: skip
        if all(value.is_fully_addressable or value.is_fully_replicated for value in self.arrays.values()):
            arrays = {key: np.asarray(value) for key, value in self.arrays.items()}
            result |= {"first_and_last": _fingerprint.of_rows(arrays), "content": _fingerprint.digest(arrays)}
        return result


class ResidentIterator:
    """A `BatchIterator` over a `Resident` or another `DeviceLoader`."""

    def __init__(self, loader: DeviceLoader, state: Mapping[str, Any] | None = None) -> None:
        self._loader = loader
        self._step = 0 if state is None else step_of(state)

    def __iter__(self) -> ResidentIterator:
        return self

    def __next__(self) -> Batch:
        epochs = self._loader.epochs
        if epochs is not None and self._step >= epochs * self._loader.steps_per_epoch:
            raise StopIteration
        batch = self._loader._gather(self._loader.arrays, self._step)
        self._step += 1
        return batch

    def get_state(self) -> State:
        """Returns ``{"step": n}``, the number of batches returned since the start."""
        return {"step": self._step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves to the step of a state."""
        self._step = step_of(state)

    def close(self) -> None:
        """Does nothing, since no thread reads ahead."""
