"""Temporary memory of the memory-efficient losses and their gradients, as compiled.

Run ``python -m benchmarks.memory``, which compiles the losses without running them. The chunked losses are compared
with the same losses of logits, with gradients of the student's hidden states and kernel (``--seconds`` also times them
in turn); the relations are compared with their limits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import rich
import tyro
from rich.table import Table

from benchmarks.common import command, costs, ratio, report, seconds_in_turn
from jaxkd import losses

MIB = 2**20
#: upper limit of a relation's temporary MiB with its gradient, by batch size
LIMITS = {1024: 300}
#: lower limit of the dense loss's memory over the chunked loss's
LEAST_SAVING = 6.0

#: number of the teacher's known words
KNOWN = 64

#: losses of the logits of student and teacher, beside their chunked forms of hidden states and kernels; labels, and a
#: teacher's known words, are the last arguments
PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    name: (functools.partial(getattr(losses, name), temperature=1.0), getattr(losses, f"linear_{name}"))
    for name in ("soft_target_kl", "reverse_kl", "generalized_jsd", "skew_kl", "skew_reverse_kl", "total_variation")
}
#: losses of logits without a chunked form
DENSE = ("decoupled_kd",)
CHUNKED = (*PAIRS, "cross_entropy", "top_k_kl", "cross_entropy and soft_target_kl", "the two, of an embedding table")

RELATIONS = (
    "distance_relation",
    "angle_relation",
    "similarity_preserving",
    "correlation_congruence",
    "probabilistic_transfer",
    "darkrank_hard",
    "darkrank_soft",
)


def linear_sides(loss: str) -> dict[str, Callable[..., Any]]:
    """Returns value and gradient of the mean, with dense logits and, if it exists, in chunks of the vocabulary."""
    tied = loss.endswith("table")

    def dense(student: Any, kernel: Any, teacher: Any, teacher_kernel: Any, labels: Any, *known: Any) -> Any:
        logits = student @ (kernel.T if tied else kernel)
        if loss == "cross_entropy":
            return losses.cross_entropy(logits, labels).mean()
        if loss == "top_k_kl":
            return losses.top_k_kl(logits, *known).mean()
        teacher_logits = jax.lax.stop_gradient(teacher @ teacher_kernel)
        if loss in PAIRS:
            return PAIRS[loss][0](logits, teacher_logits).mean()
        if loss in DENSE:
            return getattr(losses, loss)(logits, teacher_logits, labels).mean()
        both = losses.cross_entropy(logits, labels), losses.soft_target_kl(logits, teacher_logits, temperature=1.0)
        return both[0].mean() + both[1].mean()

    def in_chunks(student: Any, kernel: Any, teacher: Any, teacher_kernel: Any, labels: Any, *known: Any) -> Any:
        if loss == "cross_entropy":
            return losses.linear_cross_entropy(student, kernel, labels).mean()
        if loss == "top_k_kl":
            return losses.linear_top_k_kl(student, kernel, *known).mean()
        heads = student, kernel, teacher, teacher_kernel
        if loss in PAIRS:
            return PAIRS[loss][1](*heads).mean()
        both = losses.linear_cross_entropy_and_kl(*heads, labels, transposed=(tied, False))
        return both[0].mean() + both[1].mean()

    sides = {"dense": dense} if loss in DENSE else {"dense": dense, "chunked": in_chunks}
    return {side: jax.value_and_grad(f, argnums=(0, 1)) for side, f in sides.items()}


def linear(loss: str, tokens: int, vocabulary: int, hidden: int, teacher: int, rounds: int) -> dict[str, Any]:
    """Returns the row of a loss of dense logits, and of its chunked form."""
    kernel = (vocabulary, hidden) if loss.endswith("table") else (hidden, vocabulary)
    shapes = (tokens, hidden), kernel, (tokens, teacher), (teacher, vocabulary)
    abstract = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    abstract += [jax.ShapeDtypeStruct((tokens,), jnp.int32)]
    abstract += [jax.ShapeDtypeStruct((tokens, KNOWN), dtype) for dtype in (jnp.float32, jnp.int32)]
    compiled = {side: jax.jit(f).lower(*abstract).compile() for side, f in linear_sides(loss).items()}
    cost = {side: costs(program) for side, program in compiled.items()}
    row: dict[str, Any] = {
        "loss": loss,
        "tokens": tokens,
        "vocabulary": vocabulary,
        "hidden": [hidden, teacher],
        "temporary_bytes": {side: each["temporary_bytes"] for side, each in cost.items()},
        "logit_arrays": cost["dense"]["temporary_bytes"] / (4 * tokens * vocabulary),
        # The compiler counts a loop's body once, so the chunked loss's FLOPs are computed: the dense loss's products.
        "flops": {
            "dense": cost["dense"]["flops"],
            "products": 2.0
            * tokens
            * vocabulary
            * (3 * hidden + (0 if loss in ("cross_entropy", "top_k_kl") else teacher)),
        },
    }
    if "chunked" in cost:
        row["memory_saving"] = cost["dense"]["temporary_bytes"] / cost["chunked"]["temporary_bytes"]
        row["limit"] = LEAST_SAVING
    if rounds:
        keys = jax.random.split(jax.random.key(0), len(shapes))
        arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
        arrays[1], arrays[3] = arrays[1] / hidden**0.5, arrays[3] / teacher**0.5
        known = jax.lax.top_k(jax.nn.log_softmax(arrays[2] @ arrays[3]), KNOWN)
        arrays += [jax.random.randint(keys[0], (tokens,), 0, vocabulary), *known]
        sides = {side: functools.partial(program, *arrays) for side, program in compiled.items()}
        seconds = seconds_in_turn(sides, rounds)
        row["seconds"] = {side: sorted(values)[len(values) // 2] for side, values in seconds.items()}
        if "chunked" in seconds:
            row["time_ratio"] = ratio(seconds["chunked"], seconds["dense"])
    return row


def relation(name: str, batch: int, features: int) -> dict[str, Any]:
    """Returns the row of a relation, with student and teacher features of one size."""
    loss = getattr(losses, name)
    array = jax.ShapeDtypeStruct((batch, features), jnp.float32)
    compiled = jax.jit(jax.value_and_grad(lambda s, t: loss(s, t).mean())).lower(array, array).compile()
    return {"loss": name, "batch": batch, "features": features, "limit_mib": LIMITS.get(batch)} | costs(compiled)


def main(
    tokens: int = 4096,
    vocabulary: int = 32768,
    hidden: Annotated[tuple[int, int], tyro.conf.arg(help="sizes of the student's and the teacher's hidden states")] = (
        512,
        1024,
    ),
    batches: Annotated[tuple[int, ...], tyro.conf.arg(help="batch sizes of the relations")] = (1024, 4096),
    features: int = 256,
    seconds: Annotated[int, tyro.conf.arg(help="number of rounds that time the chunked losses")] = 0,
    out: Annotated[Path | None, tyro.conf.arg(help="JSON file to write the results to")] = None,
) -> None:
    """Compiles the chunked losses and the relations with gradients, and reports their memory."""
    rows = [linear(loss, tokens, vocabulary, *hidden, seconds) for loss in (*CHUNKED, *DENSE)]
    table = Table(title=f"{tokens} tokens × {vocabulary} words, hidden {hidden[0]} and {hidden[1]}")
    for column in (
        "",
        "dense, MiB",
        "arrays",
        "chunked, MiB",
        "saving",
        "at least",
        "dense, s",
        "chunked, s",
        "time ratio",
    ):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        memory, timed = row["temporary_bytes"], row.get("seconds", {})
        table.add_row(
            row["loss"],
            f"{memory['dense'] / MIB:,.0f}",
            f"{row['logit_arrays']:.1f}",
            f"{memory['chunked'] / MIB:,.0f}" if "chunked" in memory else "-",
            f"{row['memory_saving']:.1f}×" if "limit" in row else "-",
            f"{row['limit']:.0f}×" if "limit" in row else "-",
            *(f"{timed[side]:.2f}" if side in timed else "-" for side in ("dense", "chunked")),
            f"{row['time_ratio']:.2f}" if "time_ratio" in row else "-",
        )
    table.caption = "arrays: the dense loss's memory in arrays of logits"
    rich.print(table)
    relations = [relation(name, batch, features) for name in RELATIONS for batch in batches]
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
    table.caption = "GFLOP: the compiler counts one iteration of a loop"
    rich.print(table)
    report([*rows, *relations], out)


if __name__ == "__main__":
    command(main)
