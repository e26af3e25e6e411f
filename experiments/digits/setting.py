"""Who sees what: the teacher all labels, the student few of them and the other images without.

Every method sees the same batches in the same order: half of each is labelled, the other half is drawn from all
training images, with the labels taken away.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.digits.config import Config
from jaxkd import data
from jaxkd.data._fingerprint import digest
from jaxkd.types import Batch

MEAN, STD = (0.305,), (0.375,)  # of all pixels of the training split


class PerSeed:
    """An input for `jaxkd.training.fit` whose batches are those of all seeds, ``[seeds, batch, ...]``.

    Each seed has sets and an order of its own; a batch is a batch of each of its sets, one after the other.

    Args:
      parts: for each part of a batch, the set of every seed, all of one size.
      sizes: the number of examples of each part in a batch.
      seeds: the numbers of the seeds.

    Attributes:
      arrays: what `gather` needs on the device.
      batch_size: examples in a seed's batch.
      steps_per_epoch: batches in a pass over the last part.
    """

    def __init__(self, parts: Sequence[Sequence[data.Dataset]], sizes: Sequence[int], seeds: Sequence[int]) -> None:
        self._loaders = [
            data.Resident(every_seed[0], size, drop_remainder=True)
            for every_seed, size in zip(parts, sizes, strict=True)
        ]
        stacked = [jax.tree.map(lambda *x: jnp.stack(x), *[dict(one.arrays) for one in part]) for part in parts]
        self.arrays: dict[str, Any] = {"parts": stacked, "seed": jnp.asarray(seeds, jnp.uint32)}
        self.batch_size = sum(sizes)
        self.steps_per_epoch = self._loaders[-1].steps_per_epoch

    def gather(self, arrays: dict[str, Any], step: Any) -> Batch:
        """The batches of all seeds at a step."""

        def one_seed(parts: list[dict[str, Any]], seed: Any) -> Batch:
            batches = [loader.gather(part, step, seed=seed) for loader, part in zip(self._loaders, parts, strict=True)]
            return jax.tree.map(lambda *x: jnp.concatenate(x), *batches)

        batch: Batch = jax.vmap(one_seed)(arrays["parts"], arrays["seed"])
        return batch

    def fingerprint(self) -> dict[str, Any]:
        """What the data is, of all seeds."""
        return {"parts": [digest(part) for part in self.arrays["parts"]], "seeds": self.arrays["seed"].tolist()}

    def batches(self, state: Any = None) -> Iterator[Batch]:
        """The batches one after the other."""
        first = state["step"] if state else 0
        return (self.gather(self.arrays, step) for step in itertools.count(first))


def with_labels(dataset: data.Dataset, labelled: bool) -> data.Dataset:
    """A set that says of each example whether it is labelled; where not, its label is gone."""
    count = data.num_examples(dataset)
    label = dataset.arrays["label"] if labelled else np.full(count, -1, np.int32)
    return dataset._replace(arrays={**dataset.arrays, "label": label, "labelled": np.full(count, labelled)})


def seeds(config: Config) -> list[int]:
    """The numbers of the repetitions."""
    return list(range(config.first_seed, config.first_seed + config.seeds))


def for_teachers(config: Config) -> PerSeed:
    """All training examples with their labels, in an order for each seed."""
    train = with_labels(data.load("digits", "train"), True)
    return PerSeed([[train] * config.seeds], [2 * config.batch], seeds(config))


@functools.lru_cache(maxsize=4)  # of one input, what gathers its batches is compiled once for all methods
def for_students(config: Config) -> PerSeed:
    """Each seed's own few labelled examples, the same number of each digit, and all training images without labels."""
    train = data.load("digits", "train")
    labelled = [with_labels(data.split(train, [config.labels], seed=seed)[0], True) for seed in seeds(config)]
    images = [with_labels(train, False)] * config.seeds
    return PerSeed([labelled, images], [config.batch] * 2, seeds(config))


@functools.lru_cache(maxsize=4)  # of one input, what gathers its batches is compiled once for all methods
def held_out(split: str) -> data.Resident:
    """The validation or the test split, in its own order."""
    return data.Resident(with_labels(data.load("digits", split), True), batch_size=50, shuffle=False)


normalize = functools.partial(data.normalize, mean=MEAN, std=STD)
