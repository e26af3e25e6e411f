"""All seeds of a pair and a method as one program: `jax.vmap` over what a cell is when it is run alone.

Every seed has the initial weights, the order of batches and the views of its own run, and ends where that ends, up to
the rounding of the program. A seed whose loss becomes infinite ends the run of all. A cell's ``seconds`` are its share.

This is for accelerators that one small student leaves idle, where `benchmarks.seeds` shows that it pays; that has not
been measured yet. On a CPU it does not: convolutions with different kernels become a grouped one, and four seeds of
resnet8 went at 0.27 of the speed of seeds in turn (benchmarks/results/seeds.log).
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jaxkd
from experiments.cifar100 import cells, teachers, training
from experiments.cifar100.cells import Cell, Place
from jaxkd.distillers import select_run, sweep
from jaxkd.types import Batch


class PerSeed:
    """An input whose batches are those of several seeds, ``[seeds, batch, ...]``, each in an order of its own.

    Args:
      train: the input of any of the seeds: on the device, with a ``gather`` that takes a ``seed``.
      seeds: their numbers.

    Attributes:
      arrays: what `gather` needs on the device: the set, once, and the seeds.
      batch_size: examples in a seed's batch.
      steps_per_epoch: batches in one pass.
    """

    def __init__(self, train: Any, seeds: Sequence[int]) -> None:
        self._train = train
        self.arrays: dict[str, Any] = {"set": train.arrays, "seed": jnp.asarray(seeds, jnp.uint32)}
        self.batch_size, self.steps_per_epoch = train.batch_size, train.steps_per_epoch

    def gather(self, arrays: Mapping[str, Any], step: Any) -> Batch:
        """The batches of all seeds at a step."""

        def of_seed(seed: Any) -> Batch:
            batch: Batch = self._train.gather(arrays["set"], step, seed=seed)
            return batch

        batches: Batch = jax.vmap(of_seed)(arrays["seed"])
        return batches

    def fingerprint(self) -> dict[str, Any]:
        """What tells this input from another."""
        return {**self._train.fingerprint(), "seed": self.arrays["seed"].tolist()}

    def batches(self, state: Any = None) -> Iterator[Batch]:
        """The batches one after the other."""
        first = state["step"] if state else 0
        return (self.gather(self.arrays, step) for step in itertools.count(first))


def run_free(wanted: Iterable[Cell], place: Place, finished: Callable[[], Any] = lambda: None) -> int:
    """As `cells.run_free`, with the seeds of a pair and a method as one program.

    Args:
      wanted: the cells; their pairs and methods are tried in the order in which they come first.
      place: what they share.
      finished: called after each program.

    Returns:
      How many other processes are at work on.
    """
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in wanted:
        groups.setdefault(cell[:3], []).append(cell)
    busy = 0
    for number, group in enumerate(groups.values(), 1):
        head = f"[{number}/{len(groups)}]"
        left = [cell for cell in group if not place.file(cell).exists()]
        with contextlib.ExitStack() as held:
            with teachers.turn(place.directory(group[0]).with_name("seeds")):  # or two would take some seeds each
                ours = [cell for cell in left if held.enter_context(cells.taken(cell, place))]
            busy += len(left) - len(ours)
            ours = [cell for cell in ours if not place.file(cell).exists()]
            for seeds in runs(ours, place):
                print(f"{head} {group[0].pair} {group[0].method} seeds {', '.join(map(str, seeds))}", flush=True)
                for cell, found in run([cell for cell in ours if cell.seed in seeds], seeds, place):
                    print(f"{head} {cell}: {cells.summary(found)}", flush=True)
                finished()
    return busy


def runs(pending: Sequence[Cell], place: Place) -> list[list[int]]:
    """Which seeds are trained together: those that an interrupted run had together, then all others.

    A run that was interrupted goes on as it was, even if some of its seeds are finished, as when the process ended
    between two of them; not if one of them is neither finished nor to be run now.

    Args:
      pending: cells of one pair and method that this process has taken.
      place: what they share.

    Returns:
      Numbers of seeds; each cell's is in one of them.
    """
    if not pending:
        return []
    left, found = {cell.seed for cell in pending}, []
    begun = place.directory(pending[0]).parent.glob("seed*/checkpoints")
    for seeds in sorted(({*map(int, re.findall(r"\d+", path.parent.name))} for path in begun), key=len, reverse=True):
        others = [pending[0]._replace(seed=seed) for seed in seeds - left]
        if seeds & left and all(place.file(cell).exists() for cell in others):
            found.append(sorted(seeds))
            left -= seeds
    return [*found, sorted(left)] if left else found


def run(pending: Sequence[Cell], seeds: Sequence[int], place: Place) -> list[tuple[Cell, dict[str, Any]]]:
    """Trains some seeds as one program, then measures and keeps each as `cells.run` does.

    Args:
      pending: cells of one pair and method, to be kept.
      seeds: those to train: the cells', and perhaps some that are finished.
      place: what they share.

    Returns:
      The cells, and what is in their ``cell.json``.
    """
    if len(seeds) == 1:
        return [(cell, cells.run(cell, place)) for cell in pending]
    protocol = place.protocol
    each = [pending[0]._replace(seed=seed) for seed in seeds]
    directory = place.directory(each[0]).with_name("seeds-" + "-".join(map(str, seeds)))
    work = cells.prepared(each[0], place)
    loader = PerSeed(work.loader, seeds)
    clock = training.Clock(directory / "seconds.json")
    result = training.run(
        sweep(distiller(work, place), batch_axis=0, seed=seeds),
        loader,
        work.splits,
        work.steps,
        protocol.eval_every,
        key=jnp.stack([jax.random.key(seed) for seed in seeds]),
        best=None,  # each seed has its own
        directory=directory,
        config={"cells": [list(cell) for cell in each], "protocol": training.settings(protocol)},
        on_eval=clock,
        progress=place.progress,
    )
    kept = []
    for i, cell in enumerate(each):
        if cell in pending:
            variables, curve = select_run(result.state, i).student, training.curve(of_member(result.history, i))
            seconds = clock.seconds / len(seeds)
            kept.append((cell, cells.keep(cell, work.trained, variables, work.steps, seconds, curve, place)))
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # all of its seeds are kept
    return kept


def distiller(work: cells.Work, place: Place) -> Callable[..., jaxkd.Distiller]:
    """Of a seed, which may be traced, its distiller for images as they are stored."""
    return lambda seed: training.placed(work.kd, work.student, cells.views(seed, place.protocol))


def of_member(history: Iterable[Mapping[str, float]], i: int) -> tuple[dict[str, float], ...]:
    """The rows of one of several runs, as they would be of it alone.

    >>> of_member([{"step": 50, "train/loss[0]": 4.0, "train/loss[1]": 3.0}], 1)
    ({'step': 50, 'train/loss': 3.0},)
    """
    end = f"[{i}]"
    return tuple(
        {name.removesuffix(end): value for name, value in row.items() if name.endswith(end) or "[" not in name}
        for row in history
    )
