"""The memory of the losses that keep it in bounds: compiled temporary memory, with the gradient, exactly.

Run ``python -m benchmarks.memory``; nothing is run, only compiled. The chunked losses stand beside the same losses of
the logits, with the gradients of the student's hidden states and kernel (and with ``--seconds`` they are also timed in
turn), the relations beside the limits that they are held to.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import rich
import tyro
from rich.table import Table

from benchmarks.common import costs, ratio, report, seconds_in_turn
from jaxkd.losses import chunked, kl

MIB = 2**20
#: temporary MiB of a relation with its gradient, and what the dense loss takes over the chunked one at least
LIMITS = {1024: 300}
LEAST_SAVING = 6.0

CHUNKED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "soft_target_kl": (kl.soft_target_kl, chunked.linear_soft_target_kl),
    "generalized_jsd": (kl.generalized_jsd, chunked.linear_generalized_jsd),
}

RELATIONS = {
    "relations.distances": "distance_relation angle_relation",
    "relations.similarities": "similarity_preserving correlation_congruence probabilistic_transfer",
    "relations.ranks": "darkrank_hard darkrank_soft",
}


def linear_sides(loss: str) -> dict[str, Callable[..., Any]]:
    """Value and gradient of the mean, of the logits and of the hidden states; no gradient for the teacher."""
    of_logits, of_hidden = CHUNKED[loss]

    def dense(student: Any, kernel: Any, teacher: Any, teacher_kernel: Any) -> Any:
        return of_logits(student @ kernel, jax.lax.stop_gradient(teacher @ teacher_kernel), temperature=1.0).mean()

    def in_chunks(*arrays: Any) -> Any:
        return of_hidden(*arrays).mean()

    return {side: jax.value_and_grad(f, argnums=(0, 1)) for side, f in (("dense", dense), ("chunked", in_chunks))}


def linear(loss: str, tokens: int, vocabulary: int, hidden: int, teacher: int, rounds: int) -> dict[str, Any]:
    """One row for a chunked loss."""
    shapes = (tokens, hidden), (hidden, vocabulary), (tokens, teacher), (teacher, vocabulary)
    abstract = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    compiled = {side: jax.jit(f).lower(*abstract).compile() for side, f in linear_sides(loss).items()}
    found = {side: costs(program) for side, program in compiled.items()}
    row: dict[str, Any] = {
        "loss": loss,
        "tokens": tokens,
        "vocabulary": vocabulary,
        "hidden": [hidden, teacher],
        "temporary_bytes": {side: cost["temporary_bytes"] for side, cost in found.items()},
        "memory_saving": found["dense"]["temporary_bytes"] / found["chunked"]["temporary_bytes"],
        "limit": LEAST_SAVING,
        # A compiler counts a loop's body once. One pass has the products of the dense loss, and no others.
        "flops": {"dense": found["dense"]["flops"], "products": 2.0 * tokens * vocabulary * (3 * hidden + teacher)},
    }
    if rounds:
        keys = jax.random.split(jax.random.key(0), len(shapes))
        arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
        arrays[1], arrays[3] = arrays[1] / hidden**0.5, arrays[3] / teacher**0.5
        sides = {side: functools.partial(program, *arrays) for side, program in compiled.items()}
        seconds = seconds_in_turn(sides, rounds)
        row["seconds"] = {side: sorted(values)[len(values) // 2] for side, values in seconds.items()}
        row["time_ratio"] = ratio(seconds["chunked"], seconds["dense"])
    return row


def relation(module: str, name: str, batch: int, features: int) -> dict[str, Any]:
    """One row for a relation, student and teacher of one size."""
    loss = getattr(importlib.import_module(f"jaxkd.losses.{module}"), name)
    array = jax.ShapeDtypeStruct((batch, features), jnp.float32)
    compiled = jax.jit(jax.value_and_grad(lambda s, t: loss(s, t).mean())).lower(array, array).compile()
    return {"loss": name, "batch": batch, "features": features, "limit_mib": LIMITS.get(batch)} | costs(compiled)


def main(
    tokens: int = 4096,
    vocabulary: int = 32768,
    hidden: Annotated[tuple[int, int], tyro.conf.arg(help="sizes of the student's and the teacher's states")] = (
        512,
        1024,
    ),
    batches: Annotated[tuple[int, ...], tyro.conf.arg(help="batches of the relations")] = (1024, 4096),
    features: int = 256,
    seconds: Annotated[int, tyro.conf.arg(help="also time the chunked losses, in so many rounds")] = 0,
    out: Annotated[Path | None, tyro.conf.arg(help="also write the figures there, as JSON")] = None,
) -> None:
    """Compiles the chunked losses and the relations, with gradients, and says what memory they take."""
    rows = [linear(loss, tokens, vocabulary, *hidden, seconds) for loss in CHUNKED]
    table = Table(title=f"{tokens} tokens × {vocabulary} words, hidden {hidden[0]} and {hidden[1]}")
    for column in ("", "dense, MiB", "chunked, MiB", "saving", "at least", "dense, s", "chunked, s", "time ratio"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        memory, timed = row["temporary_bytes"], row.get("seconds", {})
        table.add_row(
            row["loss"],
            *(f"{memory[side] / MIB:,.0f}" for side in ("dense", "chunked")),
            f"{row['memory_saving']:.1f}×",
            f"{row['limit']:.0f}×",
            *(f"{timed[side]:.2f}" if timed else "-" for side in ("dense", "chunked")),
            f"{row['time_ratio']:.2f}" if timed else "-",
        )
    rich.print(table)
    pairs = [(module, name) for module, names in RELATIONS.items() for name in names.split()]
    relations = [relation(module, name, batch, features) for module, name in pairs for batch in batches]
    table = Table(title=f"relations of {features} features, with the gradient")
    for column in ("", "batch", "MiB", "[batch, batch] arrays", "limit, MiB", "GFLOP"):
        table.add_column(column, justify="right" if column else "left")
    for row in relations:
        table.add_row(
            row["loss"],
            str(row["batch"]),
            f"{row['temporary_bytes'] / MIB:,.1f}",
            f"{row['temporary_bytes'] / (4 * row['batch'] ** 2):.1f}",
            str(row["limit_mib"] or "-"),
            f"{row['flops'] / 1e9:,.2f}",
        )
    table.caption = "of a loop, a compiler counts one round's FLOPs"
    rich.print(table)
    report([*rows, *relations], out)


if __name__ == "__main__":
    tyro.cli(main)
