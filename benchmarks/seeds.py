"""What it brings to train several seeds as one program (`jaxkd.training.sweep`) over training them in turn.

Run ``python -m benchmarks.seeds``. A student learns from cached logits, on a resident set with augmentation. Several
seeds of it are one step that is mapped over all of them, or one compiled step that takes each seed's state in turn. The
two sides alternate in one process, and a ratio is the median over the rounds, given with its quartiles.

`jax.vmap` makes a batched product out of products of matrices, but a grouped convolution out of convolutions with
different kernels. There are three networks: one of products alone; the digits demo's, whose convolutions are written as
products of patches; and a CIFAR resnet. Steps are dispatched one by one: XLA on a CPU runs the gradients of
convolutions many times slower in a scan.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import rich
import tyro
from rich.table import Table

import jaxkd
from benchmarks.cached import synthetic
from benchmarks.common import costs, quartiles, report, seconds_in_turn
from experiments.digits.models import Net
from jaxkd import data, losses, models, teachers
from jaxkd.training import preprocess, sweep

IN_TURN, VMAPPED = "in turn", "vmapped"


class Case(NamedTuple):
    """A pair of networks, a set and its augmentation, the batch of a seed, and its steps in a round."""

    name: str
    student: nn.Module
    teacher: nn.Module
    dataset: data.Dataset
    augment: Callable[[Any], Any]
    batch_size: int
    steps: int


def cases(small_steps: int, resnet_steps: int, resnet_batch: int) -> list[Case]:
    """Products of matrices, convolutions as such products, and convolutions."""
    digits = data.load("digits", "train")
    shift = functools.partial(data.shift, seed=0), functools.partial(data.normalize, mean=(0.5,), std=(0.5,))
    scale = functools.partial(data.normalize, mean=data.CIFAR100_MEAN, std=data.CIFAR100_STD)
    crop = functools.partial(data.random_crop_flip, seed=0)
    small, large = data.compose(*shift), data.compose(crop, scale)
    mlp, net = models.MLP((64, 64), 10), Net((8, 8))
    wide, resnet8, resnet20 = models.MLP((512, 512), 10), models.create("resnet8", 100), models.create("resnet20", 100)
    images = synthetic(4 * resnet_batch)
    return [
        Case("MLP 64-64-64-10, digits, batch 64", mlp, wide, digits, small, 64, small_steps),
        Case("convolutions as products, 8-8, digits, batch 64", net, Net((32, 32)), digits, small, 64, small_steps),
        Case(f"resnet8, 32 x 32, batch {resnet_batch}", resnet8, resnet20, images, large, resnet_batch, resnet_steps),
    ]


class Side(NamedTuple):
    """A compiled step, its first states, how often it is run for one step of all seeds, and how it is run."""

    compiled: Any
    states: Any
    calls: int
    run: Callable[[Any, int], Any]


class Setting(NamedTuple):
    """What the trainings of a case have in common."""

    kd: jaxkd.Distiller
    loader: Any

    def batch(self, arrays: Any, step: Any, seed: Any) -> Any:
        """A seed's batch of a step."""
        return self.loader.gather(arrays, step, seed=seed)


def setting(case: Case, directory: Path) -> Setting:
    """The student, and the logits of a teacher that has been evaluated before."""
    loader = data.Resident(case.dataset, case.batch_size, drop_remainder=True)
    model, student = jaxkd.adapters.linen(case.teacher), jaxkd.adapters.linen(case.student)
    variables = case.teacher.init(jax.random.key(1), case.augment(next(loader.batches()))["image"][:1])
    cache = jaxkd.cache.write_cache(
        directory, model, variables, loader, transform=case.augment, views=2, progress=False
    )
    objective = jaxkd.combine(
        ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=0.1),
        kd=jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.9, temperature=4.0),
    )
    optimizer = optax.sgd(0.01, momentum=0.9)
    kd = jaxkd.distill(student, teachers.cached(cache), objective, optimizer=optimizer)
    return Setting(preprocess(kd, train=case.augment), jaxkd.cache.attach(cache, loader))


def in_turn(found: Setting, seeds: Sequence[int]) -> Side:
    """One step at a time, of one seed after the other."""
    arrays = found.loader.arrays
    numbers = [jnp.uint32(seed) for seed in seeds]
    states = [found.kd.init(jax.random.key(seed), found.batch(arrays, 0, seed)) for seed in seeds]

    def step(state: Any, arrays: Any, number: Any, seed: Any) -> Any:
        return found.kd.step(state, found.batch(arrays, number, seed))[0]

    compiled = jax.jit(step).lower(states[0], arrays, jnp.int32(0), numbers[0]).compile()

    def run(states: Any, number: int) -> Any:
        pairs = zip(states, numbers, strict=True)
        return [compiled(state, arrays, jnp.int32(number), seed) for state, seed in pairs]

    return Side(compiled, states, len(seeds), run)


def vmapped(found: Setting, seeds: Sequence[int]) -> Side:
    """One step of all seeds."""
    arrays, kd = found.loader.arrays, sweep(lambda: found.kd, batch_axis=0)

    def batches(arrays: Any, number: Any) -> Any:
        return jax.vmap(lambda seed: found.batch(arrays, number, seed))(jnp.asarray(seeds, jnp.uint32))

    def step(state: Any, arrays: Any, number: Any) -> Any:
        return kd.step(state, batches(arrays, number))[0]

    state = kd.init(jnp.stack([jax.random.key(seed) for seed in seeds]), batches(arrays, jnp.int32(0)))
    compiled = jax.jit(step).lower(state, arrays, jnp.int32(0)).compile()
    return Side(compiled, state, 1, lambda state, number: compiled(state, arrays, jnp.int32(number)))


def compare(case: Case, seeds: Sequence[int], rounds: int, directory: Path) -> dict[str, Any]:
    """One row of the result."""
    found = setting(case, directory)
    sides = {IN_TURN: in_turn(found, seeds), VMAPPED: vmapped(found, seeds)}

    def steps_of(side: Side) -> Callable[[], Any]:
        def run() -> Any:
            states = side.states
            for number in range(case.steps):
                states = side.run(states, number)
            return states

        return run

    seconds = seconds_in_turn({name: steps_of(side) for name, side in sides.items()}, rounds)
    images = len(seeds) * case.steps * case.batch_size
    cost = {name: costs(side.compiled) for name, side in sides.items()}
    return {
        "case": case.name,
        "seeds": len(seeds),
        "flops": {name: sides[name].calls * cost[name]["flops"] for name in sides},
        "temporary_bytes": {name: cost[name]["temporary_bytes"] for name in sides},
        "images_per_second": {name: images / statistics.median(seconds[name]) for name in sides},
        "speed_ratio": quartiles(seconds[IN_TURN], seconds[VMAPPED]),
    }


def main(
    rounds: Annotated[int, tyro.conf.arg(help="timed rounds")] = 7,
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(help="how many seeds")] = (1, 2, 4),
    small_steps: Annotated[int, tyro.conf.arg(help="steps of the small networks in a round")] = 100,
    resnet_steps: Annotated[int, tyro.conf.arg(help="steps of the resnet in a round")] = 2,
    resnet_batch: Annotated[int, tyro.conf.arg(help="examples in a batch of the resnet")] = 64,
    out: Annotated[Path | None, tyro.conf.arg(help="also write the figures there, as JSON")] = None,
) -> None:
    """Compares seeds that are trained as one program with seeds that are trained in turn."""
    rows = []
    for case in cases(small_steps, resnet_steps, resnet_batch):
        table = Table(title=f"{case.name}: images a second", title_justify="left")
        for column in ("seeds", IN_TURN, VMAPPED, "vmapped / in turn: speed", "FLOPs"):
            table.add_column(column, justify="right")
        for count in seeds:
            with tempfile.TemporaryDirectory() as directory:
                row = compare(case, range(count), rounds, Path(directory))
            rows.append(row)
            low, middle, high = row["speed_ratio"]
            table.add_row(
                str(count),
                *(f"{row['images_per_second'][side]:,.4g}" for side in (IN_TURN, VMAPPED)),
                f"{middle:.3f} ({low:.3f} to {high:.3f})",
                f"{row['flops'][VMAPPED] / row['flops'][IN_TURN]:.4f}",
            )
        rich.print(table)
    report(rows, out)


if __name__ == "__main__":
    tyro.cli(main)
