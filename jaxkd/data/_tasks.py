"""A set as a sequence of tasks with disjoint classes, with retained examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core.batches import exclude
from jaxkd.data import _fingerprint
from jaxkd.data._order import permutation
from jaxkd.data._protocol import with_epoch
from jaxkd.data._resident import DeviceLoader, Resident

if TYPE_CHECKING:
    from jaxkd.data._dataset import Dataset
    from jaxkd.data._protocol import Batch


def class_groups(num_classes: int, num_tasks: int, *, seed: int | None = 0) -> tuple[tuple[int, ...], ...]:
    """Divides classes into tasks, as evenly as possible.

    Args:
      num_classes: number of classes.
      num_tasks: number of groups; the first ones get an additional class where the numbers do not divide.
      seed: seed of the order of the classes; None for ascending order.

    Returns:
      The class numbers of each task, in ascending order.

    Raises:
      ValueError: there are fewer classes than tasks.

    >>> class_groups(5, 2, seed=None), class_groups(10, 5, seed=1)[0]
    (((0, 1, 2), (3, 4)), (1, 7))
    """
    if not 1 <= num_tasks <= num_classes:
        raise ValueError(f"num_tasks: expected 1 to {num_classes} for {num_classes} classes, got {num_tasks}.")
    order = np.arange(num_classes)
    if seed is not None:
        order = permutation(order, num_examples=num_classes, seed=seed, epoch=0, xp=np)
    return tuple(tuple(sorted(int(number) for number in group)) for group in np.array_split(order, num_tasks))


def class_incremental(
    dataset: Dataset, tasks: int | Sequence[Sequence[int]] = 5, *, seed: int | None = 0
) -> list[Dataset]:
    """Divides a set into tasks of disjoint classes, for class-incremental learning.

    Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017.

    Args:
      dataset: set to divide.
      tasks: number of tasks, divided by `class_groups`, or the class numbers of each task. Equal numbers and seeds
        divide a training set and a test set alike.
      seed: seed of the order of the classes; None for ascending order.

    Returns:
      A `Dataset` per task. Labels, ``index`` and ``num_classes`` are those of the whole set.

    Raises:
      ValueError: a class is in two tasks or not in the set, or a task has no examples.

    >>> from jaxkd import data
    >>> parts = class_incremental(data.digits(), [[0, 1, 2], [7, 9]])
    >>> [data.num_examples(part) for part in parts], np.unique(parts[1].arrays["label"]).tolist()
    ([537, 359], [7, 9])
    """
    groups = class_groups(dataset.num_classes, tasks, seed=seed) if isinstance(tasks, int) else tasks
    flat = [number for group in groups for number in group]
    if len(set(flat)) < len(flat) or not all(0 <= number < dataset.num_classes for number in flat):
        raise ValueError(
            f"tasks: expected numbers of the {dataset.num_classes} classes of {dataset.name!r}, none of them twice, "
            f"got {[list(group) for group in groups]}."
        )
    parts = []
    for i, group in enumerate(groups):
        rows = np.flatnonzero(np.isin(dataset.arrays["label"], list(group)))
        if not len(rows):
            raise ValueError(f"tasks: task {i}, classes {list(group)}, has no examples in {dataset.name!r}.")
        parts.append(_rows(dataset, rows, f"{dataset.name}/{i}"))
    return parts


def exemplars(dataset: Dataset, *, per_class: int, seed: int = 0) -> Dataset:
    """Draws a few examples of each class at random, to retain after a task.

    Args:
      dataset: a set, such as one task of `class_incremental`.
      per_class: examples per class; a class with fewer contributes all.
      seed: seed of the draw.

    Returns:
      The examples, in the order of the set.

    Raises:
      ValueError: the number is not positive.

    >>> from jaxkd import data
    >>> np.bincount(exemplars(data.digits(), per_class=2).arrays["label"]).tolist()
    [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    if per_class < 1:
        raise ValueError(f"per_class: expected at least 1, got {per_class}.")
    label = dataset.arrays["label"]
    shuffled = permutation(np.arange(len(label)), num_examples=len(label), seed=seed, epoch=0, xp=np)
    chosen = [shuffled[label[shuffled] == number][:per_class] for number in np.unique(label)]
    return _rows(dataset, np.sort(np.concatenate(chosen)), dataset.name)


class Tasks(DeviceLoader):
    """A `Loader` that gives each task's batches in its own range of steps.

    It is resident: all sets lie on the device, and a batch is a function of the step, so that a run resumes in the task
    in which it was interrupted. After the last task's steps, its batches continue.

    Args:
      loaders: a `Resident` per task, with equal batch sizes.
      steps: number of steps per task, one per task or one for all, as for the scheme of `jaxkd.schemes`. The first may
        be 0.
      retained: retained examples of each task, such as `exemplars`, in the order of the tasks; those of the last task
        are unused and may be left out. Each batch of a task has ``retained_size`` additional rows from the retained
        examples of all tasks before, which are shuffled in every pass. In the first task these rows are masked.
      retained_size: number of retained rows per batch.
      seed: seed of the order of the retained rows.

    Raises:
      ValueError: the loaders differ in their batches, or steps or retained sets do not match them.

    Attributes:
      arrays: the tasks' arrays and the retained ones.
      batch_size: rows of a batch, retained rows included.
      steps_per_epoch: steps of all tasks together.
      steps: steps of each task.
      padded: whether batches have a ``mask``, because a loader is padded or examples are retained.

    >>> from jaxkd import data
    >>> parts = class_incremental(data.digits(), 5, seed=None)
    >>> kept = [exemplars(part, per_class=3) for part in parts]
    >>> train = Tasks([Resident(part, 32) for part in parts], steps=20, retained=kept, retained_size=8)
    >>> batch = train.gather(train.arrays, 25)
    >>> sorted(set(batch["label"][:32].tolist())), sorted(set(batch["label"][32:].tolist())), train.steps_per_epoch
    ([2, 3], [0, 1], 100)
    """

    def __init__(
        self,
        loaders: Sequence[Resident],
        steps: int | Sequence[int],
        *,
        retained: Sequence[Dataset] | None = None,
        retained_size: int = 0,
        seed: int = 0,
    ) -> None:
        self.loaders, self.seed, self.retained_size = tuple(loaders), seed, retained_size
        self.steps = _lengths(steps, len(self.loaders))
        self.starts = np.cumsum([0, *self.steps[:-1]], dtype=np.int32)
        self.steps_per_epoch, self.epochs = int(sum(self.steps)), None
        shapes = [_shapes(loader) for loader in self.loaders]
        if any(other != shapes[0] for other in shapes):
            raise ValueError(f"loaders: expected batches of one form in all tasks, got {shapes}.")
        self.arrays = {"tasks": [loader.arrays for loader in self.loaders], "retained": {}}
        self._ends: list[int] = [0] * len(self.loaders)  # number of retained rows from the tasks before each
        self._retain(retained)
        self.batch_size = self.loaders[0].batch_size + retained_size
        self.padded = bool(retained_size) or any(loader.padded for loader in self.loaders)
        self._gather = jax.jit(self.gather)

    def _retain(self, retained: Sequence[Dataset] | None) -> None:
        if (retained is None) != (self.retained_size == 0) or self.retained_size < 0:
            raise ValueError(
                "retained, retained_size: expected both, sets and a positive number of rows for each batch, or "
                f"neither, got {'no sets' if retained is None else 'sets'} and {self.retained_size}."
            )
        if retained is None:
            return
        count = len(self.loaders)
        if len(retained) not in (count - 1, count) or count < 2:
            raise ValueError(
                f"retained: expected a set for each of the {count} tasks but the last, got {len(retained)} sets."
            )
        kept = retained[: count - 1]
        for i, one in enumerate(kept):
            form, expected = _forms(one.arrays), _forms(self.loaders[0].arrays)
            if form != expected:
                raise ValueError(f"retained: expected rows as those of the tasks, {expected}, got {form} in set {i}.")
        self._ends = np.cumsum([0, *(len(one.arrays["index"]) for one in kept)]).tolist()
        joined = {name: np.concatenate([one.arrays[name] for one in kept]) for name in kept[0].arrays}
        # Placed like the tasks' arrays, since one program takes all of them.
        sharding = jax.tree.leaves(self.loaders[0].arrays)[0].sharding
        self.arrays["retained"] = jax.device_put(joined, sharding)

    def gather(self, arrays: Mapping[str, Any], step: Any) -> Batch:
        """Returns the batch of a global step, a pure function for jit and scan.

        It is the batch of the task's `Resident` at the number of steps since the task began, followed by the retained
        rows; with a ``mask`` if `padded`. ``arrays`` is `Tasks.arrays`, and the step may be traced.
        """
        step = jnp.asarray(step, jnp.int32)
        branches = [self._branch(i) for i in range(len(self.loaders))]
        batch: Batch = jax.lax.switch(self.task(step), branches, arrays, step)
        return batch

    def task(self, step: Any) -> jax.Array:
        """Returns the number of the task at a step.

        >>> from jaxkd import data
        >>> loaders = [Resident(part, 8) for part in class_incremental(data.digits(), 2)]
        >>> Tasks(loaders, steps=[3, 5]).task(jnp.arange(5)).tolist()
        [0, 0, 0, 1, 1]
        """
        return jnp.searchsorted(jnp.asarray(self.starts), jnp.asarray(step, jnp.int32), side="right") - 1

    def _branch(self, i: int) -> Callable[[Mapping[str, Any], jax.Array], Batch]:
        def run(arrays: Mapping[str, Any], step: jax.Array) -> Batch:
            own = step - int(self.starts[i])
            batch = self.loaders[i].gather(arrays["tasks"][i], own)
            if self.padded and "mask" not in batch:
                batch["mask"] = jnp.ones(self.loaders[i].batch_size, bool)
            if not self.retained_size:
                return batch
            more = self._retained_rows(arrays["retained"], own, i)
            return {name: jnp.concatenate([x, more[name]]) for name, x in batch.items()}

        return run

    def _retained_rows(self, rows: Mapping[str, jax.Array], own: jax.Array, i: int) -> Batch:
        """Returns the retained rows of a step of task i, masked if no task precedes it."""
        size = self._ends[i]
        position = own * self.retained_size + jnp.arange(self.retained_size, dtype=jnp.int32)
        # The offset gives each task other passes, hence other orders and other augmentations.
        epoch = position // max(size, 1) + int(self.starts[i])
        chosen = jnp.zeros_like(position)
        if size:
            orders = jax.vmap(
                lambda at, epoch: permutation(at[None], num_examples=size, seed=self.seed, epoch=epoch)[0]
            )
            chosen = orders(position % size, epoch)
        batch = {name: value.at[chosen].get(mode="promise_in_bounds") for name, value in rows.items()}
        return exclude(with_epoch(batch, epoch), jnp.full(self.retained_size, bool(size)))

    def fingerprint(self) -> dict[str, Any]:
        """Returns the tasks' fingerprints and steps, and a digest of the retained rows."""
        result: dict[str, Any] = {"steps": list(self.steps), "retained_size": self.retained_size, "seed": self.seed}
        result |= {str(i): loader.fingerprint() for i, loader in enumerate(self.loaders)}
        kept = self.arrays["retained"]
        if kept and all(x.is_fully_addressable or x.is_fully_replicated for x in kept.values()):
            result["retained"] = _fingerprint.digest({name: np.asarray(x) for name, x in kept.items()})
        return result


def _rows(dataset: Dataset, rows: np.ndarray, name: str) -> Dataset:
    return dataset._replace(arrays={key: value[rows] for key, value in dataset.arrays.items()}, name=name)


def _lengths(steps: int | Sequence[int], tasks: int) -> tuple[int, ...]:
    each = (steps,) * tasks if isinstance(steps, int) else tuple(int(number) for number in steps)
    positive = each[1:] if each and each[0] == 0 and len(each) > 1 and not isinstance(steps, int) else each
    if not tasks or len(each) != tasks or any(number < 1 for number in positive):
        expected = f"a positive number, or one for each of the {tasks} tasks (the first may be 0)"
        raise ValueError(f"steps: expected {expected}, got {steps}.")
    return each


def _forms(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape[1:])}" for name, x in sorted(arrays.items())}


def _shapes(loader: Any) -> dict[str, Any]:
    if not hasattr(loader, "gather"):
        raise ValueError(
            f"loaders: expected inputs that lie on the device, such as jaxkd.data.Resident, got "
            f"{type(loader).__name__}."
        )
    return {"batch_size": loader.batch_size, **_forms(loader.arrays)}
