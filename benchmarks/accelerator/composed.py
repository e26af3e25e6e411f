"""A composed step against a hand-written one, as in `benchmarks.step`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from benchmarks import step
from benchmarks.accelerator.options import Options
from benchmarks.accelerator.record import Case
from benchmarks.accelerator.timing import Box
from benchmarks.common import costs
from jaxkd import models


def pairs(rehearse: bool) -> list[step.Case]:
    """Returns a case bound by dispatch and one bound by computation."""
    random = np.random.default_rng(0)

    def rows(count: int, shape: tuple[int, ...], classes: int) -> dict[str, np.ndarray]:
        image = random.normal(size=(count, *shape)).astype(np.float32)
        return {"image": image, "label": random.integers(0, classes, count).astype(np.int32)}

    if rehearse:
        small = models.create("resnet14", 100), models.create("resnet8", 100)
        return [
            step.Case("MLP", models.MLP((8,), 10), models.MLP((16,), 10), "Hidden_0", rows(32, (64,), 10), 8, 2, 2, 1),
            step.Case(
                "resnet8 from resnet14", small[1], small[0], "ResNetStage_1", rows(8, (8, 8, 3), 100), 4, 1, 1, 1
            ),
        ]
    mlp = models.MLP((64, 64), 10), models.MLP((512, 512), 10)
    student, teacher = models.create("resnet8x4", 100), models.create("resnet32x4", 100)
    images = rows(64 * 20, (32, 32, 3), 100)
    return [
        step.Case("MLP 64-64-64-10 from 64-512-512-10", *mlp, "Hidden_1", rows(128 * 100, (64,), 10), 128, 200, 10, 1),
        step.Case("resnet8x4 from resnet32x4", student, teacher, "ResNetStage_1", images, 64, 20, 10, 1),
    ]


def cases(options: Options) -> list[Case]:
    """Returns a loop of compiled steps of each pair."""
    return [
        Case(f"{pair.name}, batch {pair.batch_size}", 5 if number == 0 else 25, functools.partial(loop, pair))
        for number, pair in enumerate(pairs(options.rehearse))
    ]


def loop(pair: step.Case, box: Box) -> dict[str, Any]:
    """Returns the costs and times of both sides, and the costs of the hand-written step with the same losses."""
    sides = step.Pair(pair)
    row = step.compare(sides.loops, 11 if box.left > 20 else 3, pair.steps)
    row["of_the_same_losses"] = costs(sides.compiled_with_the_same_losses())
    for cost in ("flops", "temporary_bytes"):
        same = row["of_the_same_losses"][cost]
        row[f"{cost}_ratio"] = row[cost]["composed"] / same if same else None
    return row | {"device_kind": jax.devices()[0].device_kind}
