"""The placed step: bytes of its state, and memory and collectives as it is compiled."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxkd
from benchmarks.scale.networks import SEQUENCE, STUDENT, TEACHER, Size, model, variables
from jaxkd import losses, models, parallel, teachers

CHUNK = 256  # tokens of a device whose logits exist at once
#: An accelerator's compiler orders a program for its memory; that of a CPU orders it for concurrency, unless it is told
#: not to. Buffers are assigned before the processor's code is generated, which needs no optimization.
OPTIONS: dict[str, Any] = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}
#: layers of teacher and student: of the steps that are compiled, of three that give the coefficients, and of a check
COMPILED = ((1, 1), (2, 1), (1, 2), (2, 3), (1, 4))
FITTED, CHECKED = ((1, 2), (2, 3), (1, 4)), (3, 5)


def distiller(
    student: models.DecoderConfig, teacher: models.DecoderConfig, weights: Any, devices: int
) -> jaxkd.Distiller:
    """Returns soft targets of all words from hidden states, with AdamW, for float32 parameters."""
    kd = jaxkd.term(
        losses.linear_soft_target_kl,
        *("student/hidden", "student_params/embed/embedding", "teacher/hidden", "teacher_params/lm_head/kernel"),
        transposed=(True, False),
        chunk=CHUNK * devices,
    )
    frozen = teachers.frozen(model(teacher), weights)
    return jaxkd.distill(
        model(student), frozen, jaxkd.combine(kd=kd), optimizer=optax.adamw(1e-4), metrics=lambda context: {}
    )


def mesh_of(devices: int) -> Mesh:
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices])


def placed(state: Any, rule: Callable[[tuple[int, ...]], PartitionSpec], mesh: Mesh) -> Any:
    """Returns the shapes of a state with the shardings of ``{"^teacher/": rule, "student/": rule}``."""
    whole = NamedSharding(mesh, PartitionSpec())

    def sharded(tree: Any) -> Any:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, rule(x.shape))), tree
        )

    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)
    return state._replace(**{name: sharded(getattr(state, name)) for name in ("student", "teacher", "opt_state")})


def held(tree: Any) -> int:
    """Returns the bytes that a device holds of shapes with shardings."""
    leaves = [x for x in jax.tree.leaves(tree) if not jnp.issubdtype(x.dtype, jax.dtypes.extended)]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in leaves)


def abstract(devices: int, teacher: Size, student: Size, layers: tuple[int, int], tokens: int) -> tuple[Any, Any, Any]:
    """Returns a placed distiller, and state and batch as shapes with shardings; each device has one sequence."""
    mesh = mesh_of(devices)
    rule = parallel.fully_sharded(mesh)
    of_teacher, of_student = teacher.config(layers[0]), student.config(layers[1])
    weights = variables(of_teacher, jnp.bfloat16)
    batch = {"tokens": jax.ShapeDtypeStruct((devices, tokens), jnp.int32)}

    def init(key: Any, weights: Any, batch: Any) -> Any:
        return distiller(of_student, of_teacher, weights, devices).init(key, batch)

    state = placed(jax.eval_shape(init, jax.random.key(0), weights, batch), rule, mesh)
    split = NamedSharding(mesh, PartitionSpec("data"))
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split) for name, x in batch.items()}
    kd = distiller(of_student, of_teacher, weights, devices)
    return parallel.shard(kd, mesh, rules={"^teacher/": rule, "student/": rule}), state, batch


_ARRAY = re.compile(r"(f64|f32|bf16|f16|s64|u64|s32|u32|s8|u8|pred)\[([\d,]*)\]")
_BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "pred": 1}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def collectives(program: str) -> dict[str, int]:
    """Returns the bytes of the results of a compiled program's collectives by kind; those of a loop count once.

    >>> collectives("%a = f32[8,2]{1,0} all-gather(%b)\\n  %c = (bf16[4], bf16[2]) all-reduce(%d, %e)")
    {'all-gather': 64, 'all-reduce': 12}
    """
    found: dict[str, int] = {}
    for line in program.splitlines():
        kind = re.search(rf"= (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(", line)
        if kind:
            arrays = _ARRAY.findall(kind[1])
            found[kind[2]] = found.get(kind[2], 0) + sum(
                _BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n) for dtype, shape in arrays
            )
    return found


def compiled(
    devices: int, layers: tuple[int, int], teacher: Size = TEACHER, student: Size = STUDENT, tokens: int = SEQUENCE
) -> dict[str, Any]:
    """Returns bytes per device of a compiled step with so many layers of teacher and student."""
    kd, state, batch = abstract(devices, teacher, student, layers, tokens)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    lowered = jax.jit(kd.step, donate_argnums=0, out_shardings=(shardings, None)).lower(state, batch)
    program: Any = lowered.compile(OPTIONS)
    memory = program.memory_analysis()
    return {
        **{"devices": devices, "layers": list(layers)},
        **{"argument_bytes": memory.argument_size_in_bytes, "temporary_bytes": memory.temp_size_in_bytes},
        "state_bytes": held(state),
        "collective_bytes": collectives(program.as_text()),
    }


def extrapolated(rows: Sequence[Mapping[str, Any]], entry: Callable[[Any], float], layers: tuple[int, int]) -> float:
    """Returns an entry for any numbers of layers, linear in both, from three rows.

    >>> rows = [{"layers": [1, 1], "x": 9}, {"layers": [2, 1], "x": 11}, {"layers": [1, 2], "x": 14}]
    >>> extrapolated(rows, lambda row: row["x"], (3, 2))
    18.0
    """
    left = np.array([[1, *row["layers"]] for row in rows], float)
    start, teacher, student = np.linalg.solve(left, np.array([entry(row) for row in rows], float))
    return float(round(start + teacher * layers[0] + student * layers[1], 6))


def whole(rows: Sequence[Mapping[str, Any]], devices: int) -> dict[str, Any]:
    """Returns the bytes of the whole networks' step from compiled rows, and what the checked row finds.

    State and collectives are linear in the layers of both networks. Temporary memory is that of a line in the student's
    layers through all rows but the checked one, which the order of the operations makes uneven; the teacher's layers
    run one after the other and add none.
    """
    found = {tuple(row["layers"]): row for row in rows if row["devices"] == devices}
    fitted, full = [found[layers] for layers in FITTED], (TEACHER.layers, STUDENT.layers)
    kinds = sorted({kind for row in fitted for kind in row["collective_bytes"]})
    entries: dict[str, Callable[[Any], float]] = {"argument_bytes": lambda row: row["argument_bytes"]}
    entries |= {kind: lambda row, kind=kind: row["collective_bytes"].get(kind, 0) for kind in kinds}  # type: ignore[misc]
    points = [(row["layers"][1], row["temporary_bytes"]) for each, row in found.items() if each != CHECKED]
    layers, temporary = np.array(sorted(points), float).T
    slope, start = np.polyfit(layers, temporary, 1)
    result: dict[str, Any] = {"devices": devices, "temporary_bytes": float(round(start + slope * full[1]))}
    result |= {"temporary_bytes_of_a_layer": float(round(slope))}
    result |= {name: extrapolated(fitted, entry, full) for name, entry in entries.items()}
    if CHECKED in found:
        real = found[CHECKED]
        result["check"] = {
            name: extrapolated(fitted, entry, CHECKED) / entry(real) - 1 for name, entry in entries.items()
        }
        result["check"]["temporary_bytes"] = (start + slope * CHECKED[1]) / real["temporary_bytes"] - 1
    return result


def state_rows(devices: Sequence[int]) -> list[dict[str, Any]]:
    """Returns the bytes of the state that a device holds, of the whole networks, replicated and fully sharded."""
    rows = []
    for count in devices:
        _, state, _ = abstract(count, TEACHER, STUDENT, (TEACHER.layers, STUDENT.layers), SEQUENCE)
        copied = placed(state, lambda shape: PartitionSpec(), mesh_of(count))
        for name, each in (("replicated", copied), ("fully sharded", state)):
            parts = {"teacher": each.teacher, "student": each.student, "optimizer": each.opt_state}
            rows.append({"devices": count, "rules": name, "bytes": {part: held(tree) for part, tree in parts.items()}})
    return rows
