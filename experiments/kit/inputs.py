"""Data on the device, and which images students and teachers see."""

import abc
import functools
import inspect
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit import recipe
from jaxkd import data
from jaxkd.types import Batch

EVAL_BATCH = 500

normalize_digits = functools.partial(data.normalize, mean=(0.305,), std=(0.375,))  # of the training split's pixels
normalize_cifar100 = functools.partial(data.normalize, mean=data.CIFAR100_MEAN, std=data.CIFAR100_STD)


@functools.lru_cache(maxsize=4)
def cifar100(data_dir: Any, split: str) -> data.Dataset:
    """Returns a split of CIFAR-100, decoded; the training images take 12 seconds."""
    found = data.load("cifar100", split, data_dir)
    return found._replace(arrays={name: found.arrays[name] for name in ("image", "label", "index")})


def augment_cifar100(seed: Any) -> recipe.Transform:
    """Returns the benchmark's augmentation, a function of the seed, the epoch and the example."""
    return data.compose(functools.partial(data.random_crop_flip, seed=seed), normalize_cifar100)


CIFAR100 = recipe.Problem(
    name="cifar100",
    classes=100,
    examples=50_000,
    shape=(32, 32, 3),
    load=cifar100,
    model=recipe.zoo(100),
    normalize=normalize_cifar100,
    augment=augment_cifar100,
    optimizer=recipe.optimizer,
    initial_optimizer=recipe.initial_optimizer,
)


def parts(train: data.Dataset, protocol: recipe.Protocol, student: bool) -> tuple[data.Dataset, data.Dataset | None]:
    """Returns the images that are trained on, and those that are held out, if any.

    The same images are held out for teachers and students, so that neither has seen them.
    """
    held = None
    if protocol.holdout:
        held, train = data.split(train, [protocol.holdout, data.num_examples(train) - protocol.holdout], seed=0)
    if student and protocol.images and protocol.images < data.num_examples(train):
        train = data.split(train, [protocol.images], seed=1)[0]
    return train, held


def evaluations(
    test: data.Dataset, held: data.Dataset | None, teacher_logits: np.ndarray | None = None
) -> dict[str, data.Resident]:
    """Returns the inputs to evaluate on, in order: test images, with logits if given, and held-out ones, if any."""
    if teacher_logits is not None:
        test = test._replace(arrays={**test.arrays, "teacher_logits": teacher_logits.astype(np.float32)})
    splits = {"test": test} if held is None else {"validation": held, "test": test}
    sizes = {name: min(EVAL_BATCH, data.num_examples(split)) for name, split in splits.items()}
    return {name: data.Resident(split, sizes[name], shuffle=False) for name, split in splits.items()}


class _Input(abc.ABC):
    """An input for `jaxkd.training.fit` that gathers batches on the device."""

    arrays: Any

    @abc.abstractmethod
    def gather(self, arrays: Any, step: Any) -> Batch:
        """Returns the batch of a step."""

    def batches(self, state: Any = None) -> Iterator[Batch]:
        first = state["step"] if state else 0
        return (self.gather(self.arrays, step) for step in itertools.count(first))


class Seeds(_Input):
    """Batches of several seeds, ``[seeds, batch, ...]``, each in the seed's own order."""

    def __init__(self, loaders: Sequence[Any], seeds: Sequence[int]) -> None:
        self._loaders, self._one = loaders, loaders[0]
        # One input for all seeds stays on the device once; `vmap` does not map over its arrays.
        self._axis = None if len(loaders) == 1 else 0
        sets = [loader.arrays for loader in loaders]
        arrays = sets[0] if self._axis is None else jax.tree.map(lambda *x: jnp.stack(x), *sets)
        self.arrays = {"sets": arrays, "seed": jnp.asarray(seeds, jnp.uint32)}
        self.batch_size, self.steps_per_epoch = self._one.batch_size, self._one.steps_per_epoch
        # An input of tasks has no seed of its own; a cached one passes its options on to the input that it wraps.
        parameters = inspect.signature(self._one.gather).parameters.values()
        self._seeded = any(one.name == "seed" or one.kind is one.VAR_KEYWORD for one in parameters)

    def gather(self, arrays: Any, step: Any) -> Batch:
        def one(own: Any, seed: Any) -> Batch:
            batch: Batch = self._one.gather(own, step, **({"seed": seed} if self._seeded else {}))
            return batch

        batches: Batch = jax.vmap(one, in_axes=(self._axis, 0))(arrays["sets"], arrays["seed"])
        return batches

    def fingerprint(self) -> dict[str, Any]:
        return {"sets": [loader.fingerprint() for loader in self._loaders], "seeds": self.arrays["seed"].tolist()}


class Joined(_Input):
    """Batches of several inputs, concatenated; the last one decides the epoch."""

    def __init__(self, *loaders: Any) -> None:
        self._loaders = loaders
        self.arrays = [loader.arrays for loader in loaders]
        self.batch_size, self.steps_per_epoch = sum(x.batch_size for x in loaders), loaders[-1].steps_per_epoch

    def gather(self, arrays: Any, step: Any, *, seed: Any = None) -> Batch:
        batches = [loader.gather(own, step, seed=seed) for loader, own in zip(self._loaders, arrays, strict=True)]
        joined: Batch = jax.tree.map(lambda *x: jnp.concatenate(x), *batches)
        return joined

    def fingerprint(self) -> dict[str, Any]:
        return {str(i): loader.fingerprint() for i, loader in enumerate(self._loaders)}


def few_labels(
    arrays: Mapping[str, np.ndarray],
    chosen: np.ndarray,
    sizes: tuple[int, int],
    seed: int,
    unknown: Mapping[str, np.ndarray] | None = None,
) -> Joined:
    """Returns batches of the chosen examples, and after them of all examples without their labels.

    The entry ``labeled`` tells them apart. ``sizes`` are the numbers of both in a batch, and ``unknown`` has entries
    of the examples without labels that replace their own.
    """
    known = np.ones(len(arrays["label"]), bool)
    whole = {**arrays, "labeled": known}
    labeled = {name: value[chosen] for name, value in whole.items()} | {"index": chosen.astype(np.int32)}
    others = whole | {"labeled": ~known, **(unknown or {})}
    return Joined(
        *(
            data.Resident(part, size, seed=seed, drop_remainder=True)
            for part, size in zip((labeled, others), sizes, strict=True)
        )
    )


def patches(x: Any, stride: int = 1) -> Any:
    """Returns the 3 × 3 patches of maps, ``[batch, height, width, 9 · channels]``.

    A convolution is a dense layer of them. ``vmap`` over seeds turns a convolution primitive into a grouped one, which
    XLA runs several times slower on a CPU; a dense layer becomes a batched matrix product.
    """
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    offsets = [(i, j) for i in range(3) for j in range(3)]
    return jnp.concatenate([x[:, i : i + height : stride, j : j + width : stride] for i, j in offsets], axis=-1)


def numbered(rows: Any, entry: str) -> Any:
    """Returns examples with numbers in place of an entry's names, in their order.

    >>> numbered([{"clip": b"run"}, {"clip": b"jump"}, {"clip": b"run"}], "clip")
    [{'clip': 1}, {'clip': 0}, {'clip': 1}]
    """
    if not len(rows) or not isinstance(rows[0].get(entry), str | bytes):
        return rows
    every = [rows[i] for i in range(len(rows))]
    known = {name: number for number, name in enumerate(sorted({row[entry] for row in every}))}
    return [{**row, entry: known[row[entry]]} for row in every]
