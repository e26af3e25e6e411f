"""A set as a sequence of tasks: classes that arrive one group after the other, and a few examples that are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.data import fingerprint
from jaxkd.data.order import permutation
from jaxkd.data.resident import Resident, ResidentIterator

if TYPE_CHECKING:
    from jaxkd.data.dataset import Dataset
    from jaxkd.data.protocol import Batch

__all__ = ["Tasks", "class_groups", "class_incremental", "exemplars"]


def class_groups(classes: int, tasks: int, *, seed: int | None = 0) -> tuple[tuple[int, ...], ...]:
    """Classes divided into tasks: as evenly as it goes, the first tasks having one more.

    Args:
      classes: how many there are.
      tasks: how many groups to make.
      seed: of the order of the classes; None for their numbers' own.

    Returns:
      The class numbers of each task, ascending within one.

    Raises:
      ValueError: there are not at least as many classes as tasks.

    >>> class_groups(5, 2, seed=None), class_groups(10, 5, seed=1)[0]
    (((0, 1, 2), (3, 4)), (1, 7))
    """
    if not 1 <= tasks <= classes:
        raise ValueError(f"tasks: expected 1 to {classes}, as there are {classes} classes, got {tasks}.")
    order = np.arange(classes)
    if seed is not None:
        order = permutation(order, size=classes, seed=seed, epoch=0, xp=np)
    return tuple(tuple(sorted(int(number) for number in group)) for group in np.array_split(order, tasks))


def class_incremental(
    dataset: Dataset, tasks: int | Sequence[Sequence[int]] = 5, *, seed: int | None = 0
) -> list[Dataset]:
    """A set as tasks of disjoint classes, as in class-incremental learning (Rebuffi et al., "iCaRL", CVPR 2017).

    Args:
      dataset: the set.
      tasks: how many, divided by `class_groups`, or the class numbers of each. A training and a test set are divided
        alike by the same number and seed.
      seed: of the order of the classes; None for their numbers' own.

    Returns:
      A `Dataset` for each task. Labels, ``index`` and ``num_classes`` are those of the whole.

    Raises:
      ValueError: a class is in two tasks or is none of the set's, or a task has no examples.

    >>> from jaxkd.data.dataset import digits, num_examples
    >>> parts = class_incremental(digits(), [[0, 1, 2], [7, 9]])
    >>> [num_examples(part) for part in parts], np.unique(parts[1].arrays["label"]).tolist()
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
    """A few examples of each class, drawn at random: what is retained of a task when its data are gone.

    Args:
      dataset: a set, such as one task of `class_incremental`.
      per_class: how many of each class; of one that has fewer, all.
      seed: of the draw.

    Returns:
      The examples, in the order of the set.

    Raises:
      ValueError: the number is not positive.

    >>> from jaxkd.data.dataset import digits
    >>> np.bincount(exemplars(digits(), per_class=2).arrays["label"]).tolist()
    [2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    """
    if per_class < 1:
        raise ValueError(f"per_class: expected at least 1, got {per_class}.")
    label = dataset.arrays["label"]
    shuffled = permutation(np.arange(len(label)), size=len(label), seed=seed, epoch=0, xp=np)
    chosen = [shuffled[label[shuffled] == number][:per_class] for number in np.unique(label)]
    return _rows(dataset, np.sort(np.concatenate(chosen)), dataset.name)


class Tasks:
    """An input that gives each task's batches in its own range of steps, for `jaxkd.training.fit`.

    It is resident: everything is on the device, and the batch of a step is a function of the step, so that a run is
    resumed in whichever task it was interrupted. After the last task's steps its batches go on.

    Args:
      loaders: a `Resident` for each task, with equal batch sizes.
      steps: how many steps each task lasts, or one number for all; what a scheme of `jaxkd.schemes` is given as well.
        The first may be 0.
      retained: what is kept of each task, such as its `exemplars`, in the order of the tasks; the last one's is not
        used and may be left out. In a task, each batch has ``retained_size`` rows more, of what was kept of the tasks
        before: all of them in turn, in a new order every time. In the first task these rows are masked.
      retained_size: how many.
      seed: of their order.

    Raises:
      ValueError: the loaders differ in their batches, or steps and retained sets do not fit them.

    Attributes:
      arrays: the tasks' arrays and the retained ones.
      batch_size: of all batches, retained rows included.
      steps_per_epoch: one pass through all tasks.
      steps: of each task.
      padded: batches have a ``mask``: if those of a loader have one, or anything is retained.

    >>> from jaxkd.data.dataset import digits
    >>> parts = class_incremental(digits(), 5, seed=None)
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
        self.arrays: dict[str, Any] = {"tasks": [loader.arrays for loader in self.loaders], "retained": {}}
        self._ends: list[int] = [0] * len(self.loaders)  # how many retained rows come before each task
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
            there, here = _forms(one.arrays), _forms(self.loaders[0].arrays)
            if there != here:
                raise ValueError(f"retained: expected rows as those of the tasks, {here}, got {there} in set {i}.")
        self._ends = np.cumsum([0, *(len(one.arrays["index"]) for one in kept)]).tolist()
        joined = {name: np.concatenate([one.arrays[name] for one in kept]) for name in kept[0].arrays}
        # Beside the tasks' own arrays, so that one program finds all of them in one place.
        sharding = jax.tree.leaves(self.loaders[0].arrays)[0].sharding
        self.arrays["retained"] = jax.device_put(joined, sharding)

    def gather(self, arrays: Mapping[str, Any], step: Any) -> Batch:
        """The batch of a step: pure, for use under jit and scan.

        Args:
          arrays: `Tasks.arrays`, as the argument of the jitted function.
          step: from the start of training, through all tasks; it may be traced.

        Returns:
          What the task's `Resident` gives for the steps since the task began, with the retained rows behind it;
          ``mask`` if `padded`.
        """
        step = jnp.asarray(step, jnp.int32)
        branches = [self._branch(i) for i in range(len(self.loaders))]
        batch: Batch = jax.lax.switch(self.task(step), branches, arrays, step)
        return batch

    def task(self, step: Any) -> jax.Array:
        """The number of the task at a step.

        >>> from jaxkd.data.dataset import digits
        >>> loaders = [Resident(part, 8) for part in class_incremental(digits(), 2)]
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
        """The rows that a step of task i adds, of what is kept of those before; masked ones if there is nothing."""
        size = self._ends[i]
        place = own * self.retained_size + jnp.arange(self.retained_size, dtype=jnp.int32)
        turn = place // max(size, 1) + int(self.starts[i])  # so that another task draws other orders, and other views
        found = jnp.zeros_like(place)
        if size:
            orders = jax.vmap(lambda at, turn: permutation(at[None], size=size, seed=self.seed, epoch=turn)[0])
            found = orders(place % size, turn)
        batch = {name: value.at[found].get(mode="promise_in_bounds") for name, value in rows.items()}
        return {**batch, "epoch": turn, "mask": jnp.full(self.retained_size, bool(size))}

    def fingerprint(self) -> dict[str, Any]:
        """What tells this input from another: its tasks', their steps, and what is retained."""
        found: dict[str, Any] = {"steps": list(self.steps), "retained_size": self.retained_size, "seed": self.seed}
        found |= {str(i): loader.fingerprint() for i, loader in enumerate(self.loaders)}
        kept = self.arrays["retained"]
        if kept and all(x.is_fully_addressable or x.is_fully_replicated for x in kept.values()):
            found["retained"] = fingerprint.digest({name: np.asarray(x) for name, x in kept.items()})
        return found

    def batches(self, state: Mapping[str, Any] | None = None) -> ResidentIterator:
        """Batches one by one, for a loop on the host: from the start, or from the state of an earlier iterator."""
        return ResidentIterator(cast(Any, self), state)

    def __iter__(self) -> ResidentIterator:
        """The same as ``batches()``."""
        return self.batches()


def _rows(dataset: Dataset, rows: np.ndarray, name: str) -> Dataset:
    return dataset._replace(arrays={key: value[rows] for key, value in dataset.arrays.items()}, name=name)


def _lengths(steps: int | Sequence[int], tasks: int) -> tuple[int, ...]:
    each = (steps,) * tasks if isinstance(steps, int) else tuple(int(number) for number in steps)
    positive = each[1:] if each and each[0] == 0 and len(each) > 1 and not isinstance(steps, int) else each
    if not tasks or len(each) != tasks or any(number < 1 for number in positive):
        raise ValueError(
            f"steps: expected a positive number, or one for each of the {tasks} tasks (the first may be 0), got "
            f"{steps}."
        )
    return each


def _forms(arrays: Mapping[str, Any]) -> dict[str, str]:
    return {name: f"{x.dtype}{list(x.shape[1:])}" for name, x in sorted(arrays.items())}


def _shapes(loader: Any) -> dict[str, Any]:
    if not hasattr(loader, "gather"):
        raise ValueError(
            f"loaders: expected inputs whose data are on the device, such as jaxkd.data.Resident, got "
            f"{type(loader).__name__}."
        )
    return {"batch_size": loader.batch_size, **_forms(loader.arrays)}
