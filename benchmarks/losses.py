"""What each loss costs over its plain formula: compiled FLOPs, temporary memory, and time (a ratio).

Run ``python -m benchmarks.losses``. Every loss of the library is compiled with its gradient at a size that training
has, and so is the formula as one writes it down in jax.numpy (`benchmarks.plain`), without masks, guards or blocks.
Both run in turn in one process; the ratio is the median over the rounds. The formulas also agree: the column
``difference`` is that of value and gradient, relative to the largest entry.
"""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro
from rich.table import Table

from benchmarks import plain
from benchmarks.common import costs, ratio, report, seconds_in_turn

LOGITS, MAPS, EMBEDDINGS = (256, 1000), (32, 16, 16, 64), (256, 256)
TOKENS, ATTENTION, FRAMES, PIXELS = (8, 128, 512), (8, 8, 128, 128), (8, 100, 64), (2, 64, 64, 21)


class Case(NamedTuple):
    """A loss, and the shapes of its arrays; a dtype is told by the maker."""

    module: str
    name: str
    arrays: tuple[Any, ...]
    options: dict[str, Any] = {}
    call: Callable[..., Any] | None = None
    plain: Callable[..., Any] | None = None
    #: arguments that are differentiated: the student's
    argnums: tuple[int, ...] = (0,)


def normal(*shapes: tuple[int, ...], scale: float = 1.0) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    return tuple(scale * random.normal(size=shape).astype(np.float32) for shape in shapes)


def integers(shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    return np.random.default_rng(1).integers(low, high, shape).astype(np.int32)


def cases() -> list[Case]:
    """One for each loss."""
    logits, maps, embeddings, tokens = (normal(shape, shape) for shape in (LOGITS, MAPS, EMBEDDINGS, TOKENS))
    attention, frames, pixels = (normal(shape, shape) for shape in (ATTENTION, FRAMES, PIXELS))
    near = normal(EMBEDDINGS, EMBEDDINGS, scale=0.02)  # DarkRank cubes distances
    labels, positive = integers(LOGITS[:1], 0, LOGITS[1]), np.abs(normal(MAPS[-1:])[0]) + 0.1
    probabilities = np.asarray(jax.nn.softmax(logits[1]))
    top, indices = (np.array(x) for x in jax.lax.top_k(jax.nn.log_softmax(logits[1]), 50))
    words, n_best = integers((8, 20), 1, 64), integers((8, 4, 20), 1, 64)
    mask = np.random.default_rng(2).random(MAPS[:3]) < 0.3
    regions = np.random.default_rng(2).random((2, 64, 64, 8)) < 0.3
    wide, heatmaps = normal((2, 32, 32, 128), (2, 32, 32, 128)), normal((16, 64, 48, 17), (16, 64, 48, 17))
    linear = normal((1024, 256), (256, 16384), (1024, 512), (512, 16384), scale=0.2)

    def pairs(loss: Callable[..., Any], a: Any, b: Any, c: Any, d: Any) -> Any:
        return loss((a, b), (c, d))

    def group(module: str, names: str, arrays: tuple[Any, ...], **options: Any) -> list[Case]:
        return [Case(module, name, arrays, **options) for name in names.split()]

    activations, flow, relations = "features.activations", "features.flow", "relations.similarities"
    return [
        *group("labels", "cross_entropy", (logits[0], labels)),
        *group("kl", "soft_target_kl reverse_kl generalized_jsd", logits),
        *group("logits", "dist logit_mse", logits),
        *group("logits", "decoupled_kd", (*logits, labels)),
        *group("labels", "soft_cross_entropy", (logits[0], probabilities)),
        *group("labels", "label_smoothing virtual_teacher_kl", (logits[0], labels)),
        *group("kl", "skew_kl skew_reverse_kl", logits),
        *group("kl", "top_k_kl", (logits[0], top, indices)),
        *group(activations, "hint_mse", maps, plain=plain.mean_square),
        *group(activations, "activation_boundary hierarchical_context", maps),
        *group(activations, "overhaul", (*maps, -positive)),
        *group(activations, "gaussian_nll channel_weighted_mse", (*maps, positive)),
        *group("features.attention", "attention_transfer factor_transfer neuron_selectivity channel_kl", maps),
        *group(flow, "solution_flow", normal(*[MAPS] * 4), call=pairs, argnums=(0, 1)),
        *group(flow, "singular_vectors", normal(*[(8, 8, 8, 32)] * 4), call=pairs, argnums=(0, 1)),  # LAPACK is slow
        *group("relations.distances", "distance_relation angle_relation", (embeddings[0][:128], embeddings[1][:128])),
        *group(relations, "similarity_preserving correlation_congruence", embeddings),
        *group(relations, "consecutive_correlation probabilistic_transfer", embeddings),
        *group("relations.ranks", "darkrank_hard darkrank_soft", near),
        *group("contrastive", "contrastive_nce", (np.abs(normal((64, 4097))[0]),), options={"num_data": 50000}),
        *group("contrastive", "info_nce", embeddings),
        *group("transformers", "attention_kl", attention),
        *group("transformers", "attention_mse", attention, plain=plain.mean_square),
        *group("transformers", "value_relation_kl", tokens, call=lambda f, s, t: f(s, t, heads=8)),
        *group("transformers", "hidden_cosine", tokens),
        *group("transformers", "hidden_mse", tokens, plain=plain.mean_square),
        *group("sequence", "ctc", (frames[0], words)),
        *group("sequence", "ctc_n_best", (frames[0], n_best, normal((8, 4))[0])),
        *group("sequence", "n_best_nll", normal((256, 8), (256, 8))),
        *group("sequence", "frame_kl", frames),
        *group("gradients", "jacobian_matching", maps),
        *group("chunked", "linear_soft_target_kl linear_generalized_jsd", linear, argnums=(0, 1)),
        *group("dense.detection", "class_weighted_cross_entropy", pixels),
        *group("dense.detection", "bounded_regression", normal((8, 4096, 4), (8, 4096, 4), (8, 4096, 4))),
        *group("dense.detection", "feature_imitation", (*maps, mask)),
        *group("dense.segmentation", "pixel_kl", pixels),
        *group("dense.segmentation", "pair_affinity", wide),
        *group("dense.regions", "region_affinity", (*normal((2, 64, 64, 32), (2, 64, 64, 32)), regions)),
        *group("dense.pose", "heatmap_mse", heatmaps, plain=plain.mean_square),
        *group("dense.pose", "joint_structure", heatmaps),
    ]


def compare(case: Case, rounds: int, least: float) -> dict[str, Any]:
    """One row of the result: value and gradient of both, each compiled once."""
    loss = getattr(importlib.import_module(f"jaxkd.losses.{case.module}"), case.name)
    function = functools.partial(loss, **case.options)
    called = functools.partial(case.call, function) if case.call else function
    formula = functools.partial(case.plain or getattr(plain, case.name), **case.options)
    sides: dict[str, Callable[..., Any]] = {"library": lambda *arrays: jnp.mean(called(*arrays)), "plain": formula}
    arrays = [jnp.asarray(array) for array in case.arrays]
    compiled = {
        name: jax.jit(jax.value_and_grad(side, argnums=case.argnums)).lower(*arrays).compile()
        for name, side in sides.items()
    }
    results, once = {}, 0.0
    for name, program in compiled.items():
        jax.block_until_ready(program(*arrays))
        start = time.perf_counter()
        results[name] = jax.block_until_ready(program(*arrays))
        once = max(once, time.perf_counter() - start)
    repeats = max(1, min(1000, int(least / once)))

    def many(program: Any) -> Any:
        for _ in range(repeats):
            result = program(*arrays)
        return result

    seconds = seconds_in_turn({name: functools.partial(many, program) for name, program in compiled.items()}, rounds)
    both = zip(*(jax.tree.leaves(results[name]) for name in sides), strict=True)
    found = {name: costs(program) for name, program in compiled.items()}
    return {
        "module": case.module,
        "loss": case.name,
        "shapes": [list(array.shape) for array in arrays],
        "flops": {name: cost["flops"] for name, cost in found.items()},
        "temporary_bytes": {name: cost["temporary_bytes"] for name, cost in found.items()},
        "milliseconds": {name: 1e3 * float(np.median(seconds[name])) / repeats for name in sides},
        "time_ratio": ratio(seconds["library"], seconds["plain"]),
        "difference": max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in both),
    }


def main(
    rounds: Annotated[int, tyro.conf.arg(help="timed rounds")] = 9,
    least: Annotated[float, tyro.conf.arg(help="seconds that a round of a loss takes at least")] = 0.05,
    only: Annotated[str, tyro.conf.arg(help="losses with this in their name or file")] = "",
    out: Annotated[Path | None, tyro.conf.arg(help="also write the figures there, as JSON")] = None,
) -> None:
    """Compares value and gradient of every loss with the plain formula's."""
    rows = []
    table = Table(title="value and gradient, library / plain formula", title_justify="left")
    for column in ("loss", "FLOPs", "memory, MiB", "plain, MiB", "ms", "plain, ms", "time ratio", "difference"):
        table.add_column(column, justify="left" if column == "loss" else "right")
    for case in cases():
        if only not in f"{case.module}.{case.name}":
            continue
        row = compare(case, rounds, least)
        rows.append(row)
        flops, memory, time_ = (row[key] for key in ("flops", "temporary_bytes", "milliseconds"))
        table.add_row(
            row["loss"],
            f"{flops['library'] / max(flops['plain'], 1):.3f}",
            *(f"{memory[side] / 2**20:.2f}" for side in ("library", "plain")),
            *(f"{time_[side]:.3g}" for side in ("library", "plain")),
            f"{row['time_ratio']:.2f}",
            f"{row['difference']:.0e}",
        )
    rich.print(table)
    report(rows, out)


if __name__ == "__main__":
    tyro.cli(main)
