"""Losses of a vocabulary from hidden states, forward and backward, beside the losses of logits.

8192 tokens, 4096 features of student and teacher, 128,256 words, bfloat16. The gradients are those of the student's
hidden states and kernel. The dense form computes the logits of both networks and takes the loss of logits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.accelerator import peaks
from benchmarks.accelerator.options import Options
from benchmarks.accelerator.record import Case, memory_stats
from benchmarks.accelerator.timing import Box, seconds_of
from jaxkd import losses


class Sizes(NamedTuple):
    """Sizes of a loss."""

    tokens: int = 8192
    hidden: int = 4096
    words: int = 128_256


TINY = Sizes(64, 16, 512)
LOSSES: dict[str, Callable[..., Any]] = {
    "soft_target_kl": functools.partial(losses.soft_target_kl, temperature=1.0),
    "generalized_jsd": losses.generalized_jsd,
}


def chunked(name: str, chunk: int | None) -> Callable[..., Any]:
    """Returns the mean of a loss of hidden states and kernels."""
    loss = getattr(losses, f"linear_{name}")
    return lambda student, kernel, teacher, teacher_kernel: jnp.mean(
        loss(student, kernel, teacher, teacher_kernel, chunk=chunk)
    )


def dense(name: str) -> Callable[..., Any]:
    """Returns the mean of a loss of the logits."""

    def loss(student: Any, kernel: Any, teacher: Any, teacher_kernel: Any) -> Any:
        return jnp.mean(LOSSES[name](student @ kernel, jax.lax.stop_gradient(teacher @ teacher_kernel)))

    return loss


def cases(options: Options) -> list[Case]:
    """Returns the cases; those of the least memory first, since a process's peak is that of its largest case."""
    sizes, chunks = (TINY, (None, 16)) if options.rehearse else (Sizes(), (None, 512, 1024, 2048))
    forms = [(chunk, name) for chunk in chunks for name in LOSSES]
    found = [
        Case(
            f"linear_{name}, {'default chunk' if chunk is None else f'chunk {chunk}'}",
            8,
            functools.partial(measure, chunked(name, chunk), sizes),
        )
        for chunk, name in forms
    ]
    return found + [Case(f"dense {name}", 8, functools.partial(measure, dense(name), sizes)) for name in LOSSES]


def shapes(sizes: Sizes) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns the shapes of hidden states and kernel, of the student and of the teacher."""
    both = [(sizes.tokens, sizes.hidden), (sizes.hidden, sizes.words)] * 2
    return tuple(jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in both)


@functools.lru_cache(maxsize=1)
def arrays(sizes: Sizes) -> tuple[Any, ...]:
    """Returns random hidden states and kernels, whose logits have a variance of 1."""

    def made(key: Any) -> tuple[Any, ...]:
        keys = jax.random.split(key, 4)
        scales = jnp.array([1.0, sizes.hidden**-0.5] * 2, jnp.bfloat16)
        return tuple(scales[i] * jax.random.normal(keys[i], x.shape, x.dtype) for i, x in enumerate(shapes(sizes)))

    found: tuple[Any, ...] = jax.block_until_ready(jax.jit(made)(jax.random.key(0)))
    return found


def measure(loss: Callable[..., Any], sizes: Sizes, box: Box) -> dict[str, Any]:
    """Returns time and memory of value and gradients."""
    start = box.clock()
    program: Any = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes(sizes)).compile()
    compiled, memory = box.clock() - start, program.memory_analysis()
    needed = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    row: dict[str, Any] = {
        **{"compile_seconds": compiled, "temporary_bytes": memory.temp_size_in_bytes, "program_bytes": needed},
        # Three products of the student's logits and one of the teacher's.
        "product_flops": 2.0 * sizes.tokens * sizes.hidden * sizes.words * 4,
    }
    available = memory_stats().get("bytes_limit")
    if available is not None and needed > available:
        return row | {"out_of_memory": f"the program needs {needed:,} bytes of {available:,}"}
    found = seconds_of(functools.partial(program, *arrays(sizes)), box.part(8))
    row |= found.row()
    kind = jax.devices()[0].device_kind
    row["fraction_of_peak"] = peaks.fraction(row["product_flops"], row["seconds"], kind, "bfloat16")
    stats = memory_stats()
    return row | {"process_peak_bytes": stats.get("peak_bytes_in_use")}
