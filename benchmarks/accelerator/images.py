"""Images per second and fraction of the device's peak.

A case is an epoch of resident random images as one dispatch, with cross-entropy and soft targets of a live or a cached
teacher. The FLOPs are those of one step before it is compiled for the device. ``float32`` is JAX's default precision:
TensorFloat-32 on a GPU that has it, and bfloat16 on a TPU.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import cached
from benchmarks.accelerator import peaks
from benchmarks.accelerator.options import Options
from benchmarks.accelerator.record import Case
from benchmarks.accelerator.resnet50 import ResNet50
from benchmarks.accelerator.timing import Box, seconds_of
from benchmarks.common import make_chunk, random_images
from jaxkd import data, models


class Pair(NamedTuple):
    """Teacher and student at a size of images and of batches."""

    teacher: str
    student: str
    size: int
    batch: int
    steps: int

    def __str__(self) -> str:
        return f"{self.teacher} → {self.student} at {self.size}, batch {self.batch}"


class Setting(NamedTuple):
    """A pair in a dtype, which its live and its cached teacher share."""

    pair: Pair
    dtype: str


FIRST = Pair("resnet32x4", "resnet8x4", 32, 64, 64), Pair("ResNet-50", "ResNet-50", 224, 64, 8)
SECOND = Pair("wrn_40_2", "wrn_16_2", 32, 64, 64)
LARGE = (
    Pair("resnet32x4", "resnet8x4", 32, 1024, 8),
    Pair("wrn_40_2", "wrn_16_2", 32, 1024, 8),
    Pair("ResNet-50", "ResNet-50", 224, 256, 4),
)
TINY = Pair("resnet14", "resnet8", 32, 4, 2), Pair("ResNet-50", "ResNet-50", 32, 2, 2)


def cases(options: Options) -> list[Case]:
    """Returns the cases, those of the usual batch size first."""
    if options.rehearse:
        settings = [Setting(TINY[0], "float32"), Setting(TINY[1], "bfloat16")]
    else:
        settings = [Setting(pair, dtype) for pair in (*FIRST, SECOND) for dtype in ("bfloat16", "float32")]
        settings += [Setting(pair, dtype) for dtype in ("bfloat16", "float32") for pair in LARGE]
    return [
        Case(f"{setting.pair}, {setting.dtype}, {teacher}", 15, functools.partial(epoch, setting, teacher))
        for setting in settings
        for teacher in (cached.LIVE, cached.CACHED)
    ]


def network(name: str, dtype: str, size: int) -> nn.Module:
    narrow = jnp.bfloat16 if dtype == "bfloat16" else None
    if name == "ResNet-50":
        tiny: dict[str, Any] = {} if size >= 128 else {"blocks": (1, 1, 1, 1), "width": 4}
        return ResNet50(dtype=narrow, **tiny)
    made: nn.Module = models.create(name, 100, dtype=narrow)
    return made


@functools.lru_cache(maxsize=1)
def sides(setting: Setting) -> Any:
    """Returns the distillers and inputs of `benchmarks.cached`, for one setting at a time."""
    pair, dtype = setting
    count = pair.batch * pair.steps
    if pair.size == 32:
        images = random_images(count)
    else:
        random = np.random.default_rng(0)
        image = random.integers(0, 256, (count, pair.size, pair.size, 3), np.uint8)
        images = data.from_arrays(image, random.integers(0, 1000, count), num_classes=1000, name="random")
    augment = functools.partial(data.normalize, mean=data.CIFAR100_MEAN, std=data.CIFAR100_STD)
    case = cached.Case(
        network(pair.student, dtype, pair.size), network(pair.teacher, dtype, pair.size), images, pair.batch, augment
    )
    with tempfile.TemporaryDirectory() as directory:
        return cached.sides(case, Path(directory) / "cache")[0]


def step_flops(step: Any, *arguments: Any) -> float | None:
    """Returns the FLOPs of a step as it is written, before the compiler chooses the device's algorithms."""
    try:
        counted: Any = jax.jit(step).lower(*arguments).cost_analysis()
        return float(counted["flops"])
    except (KeyError, NotImplementedError, TypeError, jax.errors.JaxRuntimeError):
        return None


def epoch(setting: Setting, teacher: str, box: Box) -> dict[str, Any]:
    """Returns the row of an epoch with one form of the teacher."""
    kd, loader = sides(setting)[teacher]
    state = [kd.init(jax.random.key(0), next(iter(loader)))]
    flops = step_flops(kd.step, state[0], loader.gather(loader.arrays, jnp.int32(0)))
    chunk: Any = make_chunk(kd.step, loader.gather)
    steps, start = loader.steps_per_epoch, box.clock()
    program = chunk.lower(state[0], loader.arrays, jnp.int32(0), length=steps).compile()
    compiled = box.clock() - start

    def run() -> Any:
        state[0], metrics = program(state[0], loader.arrays, jnp.int32(0))
        return metrics

    found, pair, kind = seconds_of(run, box.part(6)), setting.pair, jax.devices()[0].device_kind
    row = found.row(steps)
    return {
        **{"images_per_second": pair.batch / row["seconds"], "step_flops": flops},
        "fraction_of_peak": peaks.fraction(flops, row["seconds"], kind, setting.dtype),
        **{"temporary_bytes": program.memory_analysis().temp_size_in_bytes, "compile_seconds": compiled, **row},
        **{"pair": f"{pair.teacher} → {pair.student}", "size": pair.size, "batch": pair.batch},
        **{"dtype": setting.dtype, "teacher": teacher},
    }
