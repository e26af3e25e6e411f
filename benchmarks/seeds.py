"""Speed of training several seeds as one program, `jaxkd.distillers.sweep`, over training in turn.

Run ``python -m benchmarks.seeds``. A student learns from cached logits, on a resident set with augmentation. Several
seeds are one step that is mapped over all of them, or one compiled step that takes each seed's state in turn. The two
sides alternate in one process, and a ratio is the median over the rounds, with its quartiles.

`jax.vmap` turns matrix products into a batched product, but convolutions with different kernels into a grouped
convolution. There are three networks: one of matrix products; one whose convolutions are written as products of
patches; and a CIFAR resnet. Steps are dispatched one by one, since on a CPU XLA runs gradients of convolutions many
times slower in a scan.
"""

from __future__ import annotations

import functools
import itertools
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
from benchmarks.common import command, costs, quartiles, random_images, report, seconds_in_turn
from jaxkd import data, losses, models, teachers
from jaxkd.distillers import preprocess, sweep

IN_TURN, VMAPPED = "in turn", "vmapped"


class PatchNet(nn.Module):
    """Two 3 × 3 convolutions of 8 × 8 images, written as matrix products of patches."""

    widths: tuple[int, int]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        for width, stride in zip(self.widths, (2, 1), strict=True):
            height = x.shape[1]
            x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            offsets = itertools.product(range(3), repeat=2)
            patches = [x[:, i : i + height : stride, j : j + height : stride] for i, j in offsets]
            x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.he_normal())(jnp.concatenate(patches, axis=-1)))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class Case(NamedTuple):
    """Student, teacher, a set and its augmentation, the batch size of a seed, and steps per round."""

    name: str
    student: nn.Module
    teacher: nn.Module
    dataset: data.Dataset
    augment: Callable[[Any], Any]
    batch_size: int
    steps: int


def cases(small_steps: int, resnet_steps: int, resnet_batch: int) -> list[Case]:
    """Returns a case of matrix products, one of convolutions as such products, and one of convolutions."""
    digits = data.load("digits", "train")
    shift = functools.partial(data.shift, seed=0), functools.partial(data.normalize, mean=(0.5,), std=(0.5,))
    scale = functools.partial(data.normalize, mean=data.CIFAR100_MEAN, std=data.CIFAR100_STD)
    crop = functools.partial(data.random_crop_flip, seed=0)
    small, large = data.compose(*shift), data.compose(crop, scale)
    mlp, net = models.MLP((64, 64), 10), PatchNet((8, 8))
    wide, resnet8, resnet20 = models.MLP((512, 512), 10), models.create("resnet8", 100), models.create("resnet20", 100)
    images = random_images(4 * resnet_batch)
    return [
        Case("MLP 64-64-64-10, digits, batch 64", mlp, wide, digits, small, 64, small_steps),
        Case(
            "convolutions as products, 8-8, digits, batch 64", net, PatchNet((32, 32)), digits, small, 64, small_steps
        ),
        Case(f"resnet8, 32 x 32, batch {resnet_batch}", resnet8, resnet20, images, large, resnet_batch, resnet_steps),
    ]


class Side(NamedTuple):
    """One way of training several seeds.

    Attributes:
      compiled: compiled step.
      states: initial states.
      calls: calls of the compiled step per step of all seeds.
      run: ``(states, step number) -> states``.
    """

    compiled: Any
    states: Any
    calls: int
    run: Callable[[Any, int], Any]


class Setting(NamedTuple):
    """Distiller and input of a case."""

    kd: jaxkd.Distiller
    loader: Any

    def batch(self, arrays: Any, step: Any, seed: Any) -> Any:
        """Returns the batch of a step for a seed."""
        return self.loader.gather(arrays, step, seed=seed)


def setting(case: Case, directory: Path) -> Setting:
    """Builds the student's distiller with cached teacher logits."""
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
    return Setting(preprocess(kd, train_transform=case.augment), jaxkd.cache.attach(cache, loader))


def in_turn(shared: Setting, seeds: Sequence[int]) -> Side:
    """Builds the side that steps one seed after the other."""
    arrays = shared.loader.arrays
    numbers = [jnp.uint32(seed) for seed in seeds]
    states = [shared.kd.init(jax.random.key(seed), shared.batch(arrays, 0, seed)) for seed in seeds]

    def step(state: Any, arrays: Any, number: Any, seed: Any) -> Any:
        return shared.kd.step(state, shared.batch(arrays, number, seed))[0]

    compiled = jax.jit(step).lower(states[0], arrays, jnp.int32(0), numbers[0]).compile()

    def run(states: Any, number: int) -> Any:
        pairs = zip(states, numbers, strict=True)
        return [compiled(state, arrays, jnp.int32(number), seed) for state, seed in pairs]

    return Side(compiled, states, len(seeds), run)


def vmapped(shared: Setting, seeds: Sequence[int]) -> Side:
    """Builds the side that steps all seeds at once."""
    arrays, kd = shared.loader.arrays, sweep(lambda: shared.kd, batch_axis=0)

    def batches(arrays: Any, number: Any) -> Any:
        return jax.vmap(lambda seed: shared.batch(arrays, number, seed))(jnp.asarray(seeds, jnp.uint32))

    def step(state: Any, arrays: Any, number: Any) -> Any:
        return kd.step(state, batches(arrays, number))[0]

    state = kd.init(jnp.stack([jax.random.key(seed) for seed in seeds]), batches(arrays, jnp.int32(0)))
    compiled = jax.jit(step).lower(state, arrays, jnp.int32(0)).compile()
    return Side(compiled, state, 1, lambda state, number: compiled(state, arrays, jnp.int32(number)))


def compare(case: Case, seeds: Sequence[int], rounds: int, directory: Path) -> dict[str, Any]:
    """Returns the row of a case and a number of seeds."""
    shared = setting(case, directory)
    sides = {IN_TURN: in_turn(shared, seeds), VMAPPED: vmapped(shared, seeds)}

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
    rounds: Annotated[int, tyro.conf.arg(help="number of timed rounds")] = 7,
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(help="numbers of seeds to compare")] = (1, 2, 4),
    small_steps: Annotated[int, tyro.conf.arg(help="steps of the small networks per round")] = 100,
    resnet_steps: Annotated[int, tyro.conf.arg(help="steps of the resnet per round")] = 2,
    resnet_batch: Annotated[int, tyro.conf.arg(help="batch size of the resnet")] = 64,
    out: Annotated[Path | None, tyro.conf.arg(help="JSON file to write the results to")] = None,
) -> None:
    """Compares training seeds as one program with training them in turn."""
    rows = []
    for case in cases(small_steps, resnet_steps, resnet_batch):
        table = Table(title=f"{case.name}: images per second", title_justify="left")
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
    command(main)
