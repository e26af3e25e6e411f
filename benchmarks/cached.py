"""Cost of an epoch with a cached teacher, relative to the student alone and to a live teacher.

Run ``python -m benchmarks.cached`` (or ``make bench``). Four trainings of one student, on the same resident set with
the same augmentation, take turns in one process, each epoch a single dispatch: the student alone (cross-entropy); with
cached teacher outputs (cross-entropy and soft targets); with the same losses on targets that are a column of the set,
which separates the cost of the loss from that of the cache; and with the teacher evaluated in every step.
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
from rich.table import Table

import jaxkd
from benchmarks.common import command, costs, described, make_chunk, random_images, ratio, report, seconds_in_turn
from jaxkd import data, losses, models, teachers
from jaxkd.distillers import preprocess

VIEWS, EPOCHS = 4, 240
ALONE, COLUMN, CACHED, LIVE = "alone", "column", "cached", "live"


class Case(NamedTuple):
    """Student, teacher, a set, and its augmentation."""

    student: nn.Module
    teacher: nn.Module
    dataset: data.Dataset
    batch_size: int
    augment: Callable[[Any], Any]


def cases(resnet_batch: int, resnet_steps: int, data_dir: Path | None) -> dict[str, Case]:
    """Returns a case whose cost is mostly the teacher's, and one of convolutions."""
    digits = data.load("digits", "train")
    examples = resnet_batch * resnet_steps
    images = random_images(examples) if data_dir is None else data.load("cifar100", f"train[:{examples}]", data_dir)
    small = functools.partial(data.shift, seed=0), functools.partial(data.normalize, mean=(0.5,), std=(0.5,))
    mean, std = data.CIFAR100_MEAN, data.CIFAR100_STD
    large = functools.partial(data.random_crop_flip, seed=0), functools.partial(data.normalize, mean=mean, std=std)
    return {
        "MLP 64-64-64-10 from 64-512-512-10, digits, batch 128": Case(
            models.MLP((64, 64), 10), models.MLP((512, 512), 10), digits, 128, data.compose(*small)
        ),
        f"resnet8 from resnet20, {images.name} 32 x 32, batch {resnet_batch}": Case(
            models.create("resnet8", 100), models.create("resnet20", 100), images, resnet_batch, data.compose(*large)
        ),
    }


def sides(case: Case, directory: Path) -> tuple[dict[str, tuple[Any, Any]], jaxkd.cache.Cache]:
    """Returns each training's distiller and input, and the cache."""
    loader = data.Resident(case.dataset, case.batch_size, drop_remainder=True)
    model, student = jaxkd.adapters.linen(case.teacher), jaxkd.adapters.linen(case.student)
    example = case.augment(next(loader.batches()))
    variables = case.teacher.init(jax.random.key(1), example["image"][:1])
    cache = jaxkd.cache.write_cache(directory, model, variables, loader, transform=case.augment, views=VIEWS)
    ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=0.1)
    kd = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.9, temperature=4.0)

    def distiller(teacher: jaxkd.Teacher, **terms: jaxkd.Objective) -> jaxkd.Distiller:
        composed = jaxkd.distill(student, teacher, jaxkd.combine(**terms), optimizer=optax.sgd(0.05, momentum=0.9))
        return preprocess(composed, train_transform=cache.transform)

    targets = np.tile(np.arange(case.dataset.num_classes, dtype=np.float32), (len(case.dataset.arrays["index"]), 1))
    column = case.dataset._replace(arrays={**case.dataset.arrays, "targets": targets})
    same_loss = jaxkd.term(losses.soft_target_kl, "student/logits", "batch/targets", weight=0.9, temperature=4.0)
    return {
        ALONE: (distiller(teachers.none(), ce=ce), loader),
        COLUMN: (
            distiller(teachers.none(), ce=ce, kd=same_loss),
            data.Resident(column, case.batch_size, drop_remainder=True),
        ),
        CACHED: (distiller(teachers.cached(cache), ce=ce, kd=kd), jaxkd.cache.attach(cache, loader)),
        LIVE: (distiller(teachers.frozen(model, variables), ce=ce, kd=kd), loader),
    }, cache


def compare(name: str, case: Case, rounds: int, epochs: int) -> dict[str, Any]:
    """Returns the row of a case; a round runs ``epochs`` epochs of each side."""
    programs: dict[str, Any] = {}
    states, inputs, cost = {}, {}, {}
    with tempfile.TemporaryDirectory() as directory:
        pair, cache = sides(case, Path(directory))
        for side, (kd, loader) in pair.items():
            steps = loader.steps_per_epoch
            states[side] = kd.init(jax.random.key(0), next(iter(loader)))
            inputs[side] = loader.arrays
            chunk: Any = make_chunk(kd.step, loader.gather)
            programs[side] = chunk.lower(states[side], loader.arrays, jnp.int32(0), length=steps).compile()
            cost[side] = costs(programs[side])

        def epochs_of(side: str) -> Callable[[], Any]:
            def run() -> Any:
                for epoch in range(epochs):
                    states[side], _ = programs[side](states[side], inputs[side], jnp.int32(epoch * steps))
                return states[side]

            return run

        seconds = seconds_in_turn({side: epochs_of(side) for side in pair}, rounds)
        epoch_seconds = {side: statistics.median(s / epochs for s in seconds[side]) for side in pair}
        return {
            "case": name,
            "flops": {side: each["flops"] for side, each in cost.items()},
            "seconds_per_epoch": epoch_seconds,
            "cached_time_over": {side: ratio(seconds[CACHED], seconds[side]) for side in pair},
            "cache": {
                "views": cache.views,
                "bytes": cache.bytes,
                "bytes_per_example": cache.bytes_per_example,
                "seconds_to_compute": cache.seconds,
            },
            "epochs": EPOCHS,
            "seconds_saved": EPOCHS * (epoch_seconds[LIVE] - epoch_seconds[CACHED]) - cache.seconds,
            "seconds_live": EPOCHS * epoch_seconds[LIVE],
        }


def main(
    rounds: Annotated[int, described("number of timed rounds")] = 11,
    mlp_epochs: Annotated[int, described("epochs of the MLP per round")] = 40,
    resnet_batch: Annotated[
        int, described("batch size of the resnet; on a CPU, XLA runs convolutions in a scan slowly")
    ] = 16,
    resnet_steps: Annotated[int, described("steps per epoch of the resnet")] = 2,
    data_dir: Annotated[Path | None, described("TFDS data_dir with cifar100; otherwise, random images")] = None,
    out: Annotated[Path | None, described("JSON file to write the results to")] = None,
) -> None:
    """Compares epochs of the student alone, with a cached teacher and with a live one."""
    rows = []
    for name, case in cases(resnet_batch, resnet_steps, data_dir).items():
        row = compare(name, case, rounds, mlp_epochs if "MLP" in name else 1)
        rows.append(row)
        table = Table(title=row["case"], title_justify="left")
        for column in ("", "FLOPs of a step", "ms per epoch", "cached / this: FLOPs", "time"):
            table.add_column(column, justify="right" if column else "left")
        for side, flops in row["flops"].items():
            milliseconds = 1e3 * row["seconds_per_epoch"][side]
            table.add_row(
                side,
                f"{flops:,.7g}",
                f"{milliseconds:,.4g}",
                f"{row['flops'][CACHED] / flops:.4f}",
                f"{row['cached_time_over'][side]:.3f}",
            )
        size = row["cache"]
        table.caption = (
            f"{size['bytes_per_example']:g} bytes for each of {VIEWS} views, {size['bytes'] / 2**10:,.0f} KiB in all, "
            f"computed in {size['seconds_to_compute']:.2f} s. {EPOCHS} epochs with a live teacher take "
            f"{row['seconds_live']:.1f} s, of which the cache saves {row['seconds_saved']:.1f} s."
        )
        rich.print(table)
    report(rows, out)


if __name__ == "__main__":
    command(main)
