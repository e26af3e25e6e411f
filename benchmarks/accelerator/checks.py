"""Correctness on the device: losses against float64 references, and placements of one distillation.

A GPU multiplies float32 matrices in TensorFloat-32 by default, adds in another order, and scatters with atomic
additions. The losses are therefore compared at the precision ``highest``, and the errors at the default precision are
reported beside. The references are the NumPy formulas of `tests.references`, and the inputs those of the tests.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from benchmarks.accelerator.options import Options
from benchmarks.accelerator.record import ROOT, Case
from benchmarks.accelerator.timing import Box
from benchmarks.common import make_chunk
from jaxkd import data, losses, models, parallel

GROUP, SEED = 8, 1
#: largest relative error of a value and of a directional derivative, as in the tests of float32 on a CPU times ten
VALUE, SLOPE = 1e-3, 1e-2
#: largest difference of a parameter after some steps in two placements, relative to the largest parameter
PLACEMENT = 2e-3


def rows() -> list[Any]:
    """Returns the rows of the table of losses, which needs no pytest."""
    files = sorted(path.stem for path in Path(ROOT, "tests", "loss_rows").glob("[a-z]*.py"))
    return [row for file in files for row in importlib.import_module(f"tests.loss_rows.{file}").ROWS]


def cases(options: Options) -> list[Case]:
    """Returns placements first, then the losses in groups that are compiled as one program."""
    table = rows()[:: 20 if options.rehearse else 1]
    groups = [table[start : start + GROUP] for start in range(0, len(table), GROUP)]
    every = [Case("placements", 20, functools.partial(placements, rehearse=options.rehearse))]
    return every + [
        Case(f"losses {start * GROUP + 1} to {start * GROUP + len(group)}", 5, functools.partial(of_losses, group))
        for start, group in enumerate(groups)
    ]


def _arrays(row: Any) -> tuple[tuple[np.ndarray, ...], np.ndarray, tuple[Any, ...]]:
    """Returns float64 inputs that float32 holds exactly, a cotangent, and a direction for each differentiated array."""
    arrays = tuple(
        array if array.dtype.kind in "iub" else np.asarray(array, np.float32).astype(np.float64)
        for array in row.inputs(None, SEED, 1.0)
    )
    random = np.random.default_rng(100 + SEED)
    cotangent = random.normal(size=row.result_shape(arrays)).astype(np.float32).astype(np.float64)
    directions = tuple(random.normal(size=arrays[i].shape) for i in row.floating(arrays))
    return arrays, cotangent, directions


def _program(group: Sequence[Any]) -> Callable[..., Any]:
    """Returns ``(arrays of each loss, cotangents) -> values and gradients``."""

    def of(row: Any, arrays: Any, cotangent: Any) -> Any:
        positions, function = row.floating(row.inputs()), functools.partial(row.function, **dict(row.hyper[0]))

        def loss(*floats: Any) -> Any:
            full = list(arrays)
            for position, array in zip(positions, floats, strict=True):
                full[position] = array
            return function(*full)

        value, pullback = jax.vjp(loss, *(arrays[position] for position in positions))
        return value, pullback(jnp.asarray(cotangent, value.dtype))

    return lambda arrays, cotangents: [of(*each) for each in zip(group, arrays, cotangents, strict=True)]


def _reference(row: Any, arrays: Any, cotangent: Any, directions: Any) -> tuple[np.ndarray, float]:
    """Returns the reference's value, and its central difference along the directions."""
    positions = row.floating(arrays)

    def moved(step: float) -> float:
        at = list(arrays)
        for position, direction in zip(positions, directions, strict=True):
            at[position] = at[position] + step * direction
        return float(np.sum(cotangent * row.reference(*at, **dict(row.hyper[0]))))

    step = 1e-5
    slope = (moved(step) - moved(-step)) / (2 * step)
    return np.asarray(row.reference(*arrays, **dict(row.hyper[0]))), slope


def _errors(found: Any, exact: tuple[np.ndarray, float], directions: Any, rounding: float) -> tuple[float, float]:
    """Returns the relative errors of a value and of a directional derivative."""
    value, gradients = np.asarray(found[0], np.float64), [np.asarray(g, np.float64) for g in found[1]]
    scale = np.maximum(np.abs(exact[0]), 1e-2 + 1e3 * rounding)
    products = [g * d for g, d in zip(gradients, directions, strict=True)]
    slope = sum(float(product.sum()) for product in products)
    norm = np.sqrt(sum(float((product**2).sum()) for product in products))
    return float(np.max(np.abs(value - exact[0]) / scale)), float(
        abs(slope - exact[1]) / max(norm, abs(exact[1]), 1e-6)
    )


def of_losses(group: Sequence[Any], box: Box) -> dict[str, Any]:
    """Returns the errors of some losses at both precisions, and which of them two equal calls disagree on."""
    del box
    inputs = [_arrays(row) for row in group]
    narrow = [
        [jnp.asarray(x, x.dtype if x.dtype == bool else jnp.int32 if x.dtype.kind in "iu" else jnp.float32) for x in a]
        for a, _, _ in inputs
    ]
    cotangents = [jnp.asarray(c, jnp.float32) for _, c, _ in inputs]
    found: dict[str, Any] = {}
    again: Any = None
    for precision in ("highest", "default"):
        with jax.default_matmul_precision(precision):
            program = jax.jit(_program(group))
            found[precision] = jax.device_get(program(narrow, cotangents))
            again = again or jax.device_get(program(narrow, cotangents))
    results = {}
    for i, row in enumerate(group):
        arrays, cotangent, directions = inputs[i]
        exact = _reference(row, arrays, cotangent, directions)
        errors = {name: _errors(each[i], exact, directions, row.rounding) for name, each in found.items()}
        value, slope = errors["highest"]
        leaves = zip(jax.tree.leaves(found["highest"][i]), jax.tree.leaves(again[i]), strict=True)
        results[row.name] = {
            "passed": bool(value <= VALUE and slope <= SLOPE),
            "value_error": value,
            "gradient_error": slope,
            "value_error_default": errors["default"][0],
            "gradient_error_default": errors["default"][1],
            "repeats_bit_for_bit": all(np.array_equal(a, b, equal_nan=True) for a, b in leaves),
        }
    return {"limits": {"value": VALUE, "gradient": SLOPE}, "losses": results, **_counts(results)}


def _counts(results: dict[str, Any]) -> dict[str, Any]:
    return {
        "passed": sum(each["passed"] for each in results.values()),
        "failed": ", ".join(name for name, each in results.items() if not each["passed"]),
    }


def placements(box: Box, rehearse: bool) -> dict[str, Any]:
    """Returns the differences between placements of a distillation with BatchNorm and relations, after three steps."""
    del box
    size, count = (8, 8) if rehearse else (32, 64)
    count = max(count, jax.device_count())
    random = np.random.default_rng(0)
    image = random.normal(size=(count, size, size, 3)).astype(np.float32)
    arrays = {"image": image, "label": random.integers(0, 100, count).astype(np.int32)}
    student, teacher = models.create("resnet8", 100), models.create("resnet14" if rehearse else "resnet20", 100)
    tap = {"pooled": models.taps("resnet8")["pooled"]}
    variables = teacher.init(jax.random.key(1), image[:1])
    objective = jaxkd.combine(
        ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label"),
        kd=jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=4.0),
        rkd=jaxkd.term(losses.distance_relation, "student/pooled", "teacher/pooled"),
    )
    kd = jaxkd.distill(
        jaxkd.adapters.linen(student, taps=tap),
        jaxkd.teachers.frozen(jaxkd.adapters.linen(teacher, taps=tap), variables),
        objective,
        optimizer=optax.sgd(0.01, momentum=0.9),
    )
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def params(placed: Any) -> Any:
        state = placed.init(jax.random.key(0), arrays)
        for _ in range(3):
            state, _ = placed.step(state, arrays)
        return jax.device_get(state.student.params)

    def in_a_scan() -> Any:
        loader = data.Resident(data.from_arrays(image, arrays["label"]), count, shuffle=False)
        chunk = make_chunk(
            kd.step, lambda arrays, step: {name: loader.gather(arrays, 0)[name] for name in ("image", "label")}
        )
        state, _ = chunk(kd.init(jax.random.key(0), arrays), loader.arrays, jnp.int32(0), length=3)
        return jax.device_get(state.student.params)

    with jax.default_matmul_precision("highest"):
        first = params(parallel.jit(kd))
        others = {
            "jit again": params(parallel.jit(kd)),
            "shard": params(parallel.shard(kd, mesh, replicas=1)),
            "fully sharded": params(
                parallel.shard(kd, mesh, replicas=1, rules={"student/|teacher/": parallel.fully_sharded(mesh)})
            ),
            "scan": in_a_scan(),
        }
        if jax.device_count() == 1:  # elsewhere, its BatchNorm normalizes each device's share
            others["pmap"] = params(parallel.pmap(kd))
    largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(first))
    gaps = {}
    for name, other in others.items():
        each = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), first, other)
        gaps[name] = max(jax.tree.leaves(each)) / largest
    failed = [name for name, gap in gaps.items() if not gap <= PLACEMENT]
    return {"limit": PLACEMENT, "differences": gaps, "passed": len(gaps) - len(failed), "failed": ", ".join(failed)}
