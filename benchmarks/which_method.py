"""Cost of a step of each method: compiled FLOPs and memory, relative to a step of the student alone.

Run ``python -m benchmarks.which_method`` (five minutes); nothing is trained and no data set is read. The pair is that
of the reduced benchmark; the teacher's forward pass is part of the step. The memory is that of all
arrays that the step needs at the same time: its arguments (both networks, the optimizer, banks, the batch), its outputs
and its temporary arrays, donated ones once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich

import jaxkd
from benchmarks import common
from experiments.cifar100.problem import PROBLEM
from experiments.kit import methods, taps
from experiments.kit.methods import METHODS, Method, Setting
from experiments.kit.rows import cost
from jaxkd import losses, objectives, teachers
from jaxkd.types import Distiller, Objective


def _paths(tap: str) -> tuple[str, str]:
    return f"student/{tap}", f"teacher/{tap}"


def _added(name: str, make: Callable[..., Objective], *read: str) -> Method:
    """Returns a method with one term, of weight 1, beside the cross-entropy."""
    return Method(name, methods.with_labels(own=lambda of, weight: make(weight=1.0)), taps.fixed(*read))


def _term(loss: Callable[..., Any], tap: str, **options: Any) -> Method:
    read = () if tap == "logits" else (tap,)
    return _added(loss.__name__, functools.partial(jaxkd.term, loss, *_paths(tap), **options), *read)


def _objective(make: Callable[..., Objective], tap: str, **options: Any) -> Method:
    read = () if tap == "logits" else (tap,)
    return _added(make.__name__, functools.partial(make, *_paths(tap), **options), *read)


def _labels(loss: Callable[..., Any]) -> Method:
    return _added(loss.__name__, functools.partial(jaxkd.term, loss, "student/logits", "batch/label"))


def _singular_vectors(*, weight: float) -> Objective:
    def loss(first: Any, second: Any, teacher_first: Any, teacher_second: Any, *, where: Any = None) -> Any:
        return losses.singular_vectors((first, second), (teacher_first, teacher_second), where=where)

    maps = ("student/stage1", "student/stage2", "teacher/stage1", "teacher/stage2")
    return jaxkd.term(loss, *maps, weight=weight)


def _graph(*, weight: float) -> Objective:
    ends = [(f"{side}/stage2", f"{side}/stage3") for side in ("student", "teacher")]
    return objectives.attention_graph(*ends, weight=weight)


# Of LLVM, which has no part in the choice of operations and buffers, to which FLOPs and bytes belong.
QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

# Methods that the table of the literature, `METHODS`, does not have, by the name of their function.
OTHERS: Mapping[str, Method] = {
    "logit_mse": _term(losses.logit_mse, "logits"),
    "reverse_kl": _term(losses.reverse_kl, "logits"),
    "generalized_jsd": _term(losses.generalized_jsd, "logits"),
    "skew_kl": _term(losses.skew_kl, "logits"),
    "total_variation": _term(losses.total_variation, "logits"),
    "virtual_teacher_kl": _labels(losses.virtual_teacher_kl),
    "label_smoothing": _labels(losses.label_smoothing),
    "curriculum_temperature": _objective(objectives.curriculum_temperature, "logits"),
    "instance_temperature": _objective(objectives.instance_temperature, "logits"),
    "channel_kl": _term(losses.channel_kl, "stage3"),
    "masked_generation": _objective(objectives.masked_generation, "stage3"),
    "foundation_features": _added(
        "foundation_features", lambda weight: objectives.foundation_features(*_paths("stage3")), "stage3"
    ),
    "singular_vectors": _added("singular_vectors", _singular_vectors, "stage1", "stage2"),
    "correlation_congruence": _term(losses.correlation_congruence, "pooled"),
    "darkrank_soft": _term(losses.darkrank_soft, "pooled"),
    "darkrank_hard": _term(losses.darkrank_hard, "pooled"),
    "attention_graph": _added("attention_graph", _graph, "stage2", "stage3"),
    "crd_queue": _objective(objectives.crd_queue, "pooled"),
    "crd_in_batch": _objective(objectives.crd_in_batch, "pooled"),
    "adversarial": _objective(objectives.adversarial, "logits"),
}


def networks(method: Method, teacher: str, student: str) -> tuple[jaxkd.Model, jaxkd.Teacher]:
    """Returns the student and the teacher, with the taps that a method reads; weights are zeros."""
    taught = PROBLEM.model(student, method.student_taps(teacher, student))
    if method is METHODS["student"]:
        return taught, teachers.none()
    model = PROBLEM.model(teacher, method.teacher_taps(teacher, student))
    shapes = jax.eval_shape(model.init, jax.random.key(0), {"image": jnp.zeros((2, *PROBLEM.shape))})
    return taught, teachers.frozen(model, jax.tree.map(lambda one: np.zeros(one.shape, one.dtype), shapes))


def distillers(method: Method, teacher: str, student: str) -> dict[str, Distiller]:
    """Returns the distillers of a method: of its training, and of its initialization if it has one."""
    labels = np.arange(PROBLEM.examples, dtype=np.int32) % PROBLEM.classes
    margins = functools.partial(_margins, teacher)
    setting = Setting(teacher, student, 1000, labels, margins)
    taught, source = networks(method, teacher, student)
    optimizer = PROBLEM.optimizer(student, setting.steps)
    made = {"training": method.objective(setting)}
    if method.initial is not None:
        made["initialization"] = method.initial_objective(setting)
    return {part: jaxkd.distill(taught, source, one, optimizer=optimizer) for part, one in made.items()}


def _margins(teacher: str, tap: str) -> jax.Array:
    return -jnp.ones(PROBLEM.shapes(teacher)[tap][-1])


def measure(kd: Distiller, batch: Mapping[str, Any]) -> dict[str, float]:
    """Returns the FLOPs of a step, loops as often as they run, and the bytes that it needs at the same time."""
    state = jax.eval_shape(kd.init, jax.random.key(0), batch)
    lowered = jax.jit(kd.step, donate_argnums=0).lower(state, batch)
    compiled = lowered.compile(compiler_options=QUICK)
    memory: Any = compiled.memory_analysis()
    once: Any = lowered.cost_analysis()  # which counts the body of a loop once, as that of the compiled program does
    repeated = cost.flops(kd.step, state, batch) - once["flops"]
    both = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "flops": common.costs(compiled)["flops"] + repeated,
        "bytes": both + memory.temp_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }


def rows(teacher: str, student: str, batch_size: int, names: tuple[str, ...] = ()) -> list[dict[str, Any]]:
    """Returns the costs of all methods, of the student alone first."""
    image = jax.ShapeDtypeStruct((batch_size, *PROBLEM.shape), jnp.float32)
    number = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    batch = {"image": image, "label": number, "row": number}
    every = {**METHODS, **OTHERS}
    found: list[dict[str, Any]] = []
    for name in names or every:
        method = every[name]
        if name in METHODS and not methods.defined(name, teacher, student, PROBLEM):
            continue
        parts = {part: measure(kd, batch) for part, kd in distillers(method, teacher, student).items()}
        found.append({"method": name, "parts": parts, **whole(parts)})
        row = found[-1]
        row |= {f"{key}_over_alone": row[key] / found[0][key] for key in ("flops", "bytes")}
        flops, memory = row["flops_over_alone"], row["bytes_over_alone"]
        rich.print(f"{name:24} FLOPs {flops:6.3f}×  memory {memory:6.3f}×  ({row['bytes'] / 2**20:.1f} MiB)")
    return found


def whole(parts: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Returns the FLOPs of a training a step, an initialization of an eighth included, and the most bytes."""
    flops = parts["training"]["flops"]
    if "initialization" in parts:
        flops += methods.INITIAL * parts["initialization"]["flops"]
    return {"flops": flops, "bytes": max(part["bytes"] for part in parts.values())}


def main(
    teacher: str = "resnet20",
    student: str = "resnet8",
    batch_size: int = 64,
    out: Path | None = Path("benchmarks/results/which_method.json"),
) -> None:
    """Compiles a step of each method and writes its cost, relative to the student alone.

    Args:
      teacher: network of the teacher.
      student: network of the student.
      batch_size: images in a batch.
      out: JSON file, or None.
    """
    found = rows(teacher, student, batch_size)
    setting = {"teacher": teacher, "student": student, "batch_size": batch_size}
    common.report([{**row, **setting} for row in found], out)


if __name__ == "__main__":
    common.command(main)
