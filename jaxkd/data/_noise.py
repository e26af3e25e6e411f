"""An input of noise instead of data, for data-free distillation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxkd.data._protocol import Batch, count_steps
from jaxkd.data._resident import DeviceLoader

if TYPE_CHECKING:
    from jaxtyping import Array, Int


class Noise(DeviceLoader):
    """A `Loader` of standard normal vectors and random classes.

    It replaces a set for `jaxkd.schemes.data_free`, whose student must not see any real example. A batch is a function
    of the seed and the step; no two steps have equal batches, whatever their epochs.

    Args:
      batch_size: vectors in a batch.
      noise_size: length of a vector.
      num_classes: number of classes from which ``label`` is drawn uniformly; None leaves it out.
      examples: nominal number of examples per epoch, since evaluations and checkpoints are counted in epochs.
      seed: seed of all draws.
      epochs: number of epochs after which `batches` stops; None for no end.

    Raises:
      ValueError: a size is not positive, or the examples do not fill a batch.

    Attributes:
      arrays: the seed, on the device.
      batch_size: vectors in a batch.
      steps_per_epoch: batches in one epoch.
      num_examples: examples in one epoch, without those that do not fill a batch.

    >>> noise = Noise(4, 8, num_classes=10, examples=100)
    >>> batch = next(iter(noise))
    >>> sorted(batch), batch["noise"].shape, noise.steps_per_epoch
    (['epoch', 'index', 'label', 'noise'], (4, 8), 25)
    """

    def __init__(
        self,
        batch_size: int,
        noise_size: int,
        num_classes: int | None = None,
        *,
        examples: int = 50_000,
        seed: int = 0,
        epochs: int | None = None,
    ) -> None:
        for name, number in (("noise_size", noise_size), ("num_classes", num_classes)):
            if number is not None and number < 1:
                raise ValueError(f"Noise, {name}: expected at least 1, got {number}.")
        self.steps_per_epoch = count_steps(examples, batch_size, drop_remainder=True)
        self.num_examples = self.steps_per_epoch * batch_size
        self.batch_size, self.size, self.classes = batch_size, noise_size, num_classes
        self.seed, self.epochs = seed, epochs
        self.arrays = {"seed": jnp.asarray(seed, jnp.int32)}
        self._gather = jax.jit(self.gather)

    def gather(self, arrays: Mapping[str, Array], step: Int[Array, ""] | int, *, seed: Any = None) -> Batch:
        """Returns the batch of a step, with the arguments of `Resident.gather`.

        It has ``noise`` float32 ``[batch, size]``; ``label`` int32 ``[batch]``, if there are classes; ``index``, the
        position in the epoch, and ``epoch``, int32 ``[batch]``.
        """
        step = jnp.asarray(step, jnp.int32)
        # Threefry by name, so that the numbers depend neither on the default generator nor on the sharding.
        root = jax.random.key(arrays["seed"] if seed is None else seed, impl="threefry2x32")
        noise_key, label_key = jax.random.split(jax.random.fold_in(root, step))
        positions = jnp.arange(self.batch_size, dtype=jnp.int32)
        batch = {
            "noise": jax.random.normal(noise_key, (self.batch_size, self.size), jnp.float32),
            "index": (step % self.steps_per_epoch) * self.batch_size + positions,
            "epoch": jnp.broadcast_to(step // self.steps_per_epoch, positions.shape),
        }
        if self.classes is not None:
            batch["label"] = jax.random.randint(label_key, positions.shape, 0, self.classes, jnp.int32)
        return batch

    def fingerprint(self) -> dict[str, Any]:
        """Returns the settings by which a resumed run recognizes its input.

        >>> Noise(4, 8, examples=100).fingerprint()
        {'noise': 8, 'classes': None, 'examples': 100, 'seed': 0}
        """
        return {"noise": self.size, "classes": self.classes, "examples": self.num_examples, "seed": self.seed}
