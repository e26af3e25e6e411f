"""Cost of each loss relative to its plain formula: compiled FLOPs, temporary memory, time.

Run ``python -m benchmarks.losses``. Every loss of the library is compiled with its gradient at a size that is usual in
training, and so is the plain formula in jax.numpy (`benchmarks.plain`), without masks, guards or blocks. Both take
turns in one process; the ratio is the median over the rounds. The column ``difference`` verifies that the formulas
agree: it is the difference of value and gradient, relative to the largest entry.
"""

from __future__ import annotations

import functools
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
from benchmarks.common import command, costs, ratio, report, seconds_in_turn
from jaxkd import losses

LOGITS, MAPS, EMBEDDINGS = (256, 1000), (32, 16, 16, 64), (256, 256)
TOKENS, ATTENTION, FRAMES, PIXELS = (8, 128, 512), (8, 8, 128, 128), (8, 100, 64), (2, 64, 64, 21)


class Case(NamedTuple):
    """A loss and its arguments.

    Attributes:
      name: name of the loss in `jaxkd.losses`.
      arrays: positional arguments.
      options: hyperparameters, of the loss and of the plain formula.
      call: ``(loss, *arrays) -> values``, where the arguments need another form.
      plain: plain formula; by default the function of `benchmarks.plain` with the loss's name.
      argnums: positions of the arguments to differentiate, the student's.
    """

    name: str
    arrays: tuple[Any, ...]
    options: dict[str, Any] = {}
    call: Callable[..., Any] | None = None
    plain: Callable[..., Any] | None = None
    argnums: tuple[int, ...] = (0,)


def normal(*shapes: tuple[int, ...], scale: float = 1.0) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(0)
    return tuple(scale * random.normal(size=shape).astype(np.float32) for shape in shapes)


def integers(shape: tuple[int, ...], low: int, high: int) -> np.ndarray:
    return np.random.default_rng(1).integers(low, high, shape).astype(np.int32)


def cases() -> list[Case]:
    """Returns a case per loss."""
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

    def group(names: str, arrays: tuple[Any, ...], **options: Any) -> list[Case]:
        return [Case(name, arrays, **options) for name in names.split()]

    return [
        *group("cross_entropy", (logits[0], labels)),
        *group("soft_target_kl reverse_kl generalized_jsd dist logit_mse", logits),
        *group("decoupled_kd", (*logits, labels)),
        *group("soft_cross_entropy", (logits[0], probabilities)),
        *group("label_smoothing virtual_teacher_kl", (logits[0], labels)),
        *group("skew_kl skew_reverse_kl", logits),
        *group("top_k_kl", (logits[0], top, indices)),
        *group("sparse_cross_entropy", (logits[0], np.exp(top), indices)),
        *group("hint_mse", maps, plain=plain.mean_square),
        *group("activation_boundary hierarchical_context", maps),
        *group("overhaul", (*maps, -positive)),
        *group("gaussian_nll channel_weighted_mse", (*maps, positive)),
        *group("attention_transfer factor_transfer neuron_selectivity channel_kl", maps),
        *group("solution_flow", normal(*[MAPS] * 4), call=pairs, argnums=(0, 1)),
        *group("singular_vectors", normal(*[(8, 8, 8, 32)] * 4), call=pairs, argnums=(0, 1)),  # LAPACK is slow
        *group("distance_relation angle_relation", (embeddings[0][:128], embeddings[1][:128])),
        *group("similarity_preserving correlation_congruence", embeddings),
        *group("consecutive_correlation probabilistic_transfer", embeddings),
        *group("darkrank_hard darkrank_soft", near),
        *group("contrastive_nce", (np.abs(normal((64, 4097))[0]),), options={"num_data": 50000}),
        *group("info_nce", embeddings),
        *group("attention_kl", attention),
        *group("attention_mse", attention, plain=plain.mean_square),
        *group("value_relation_kl", tokens, call=lambda f, s, t: f(s, t, heads=8)),
        *group("hidden_cosine", tokens),
        *group("hidden_mse", tokens, plain=plain.mean_square),
        *group("ctc", (frames[0], words)),
        *group("ctc_n_best", (frames[0], n_best, normal((8, 4))[0])),
        *group("n_best_nll", normal((256, 8), (256, 8))),
        *group("frame_kl", frames),
        *group("jacobian_matching", maps),
        *group("linear_soft_target_kl linear_generalized_jsd", linear, argnums=(0, 1)),
        *group("class_weighted_cross_entropy", pixels),
        *group("sigmoid_focal", (normal((8, 4096, 20))[0], integers((8, 4096), 0, 200)[..., None] == np.arange(20))),
        *group("smooth_l1", normal((8, 4096, 4), (8, 4096, 4))),
        *group("bounded_regression", normal((8, 4096, 4), (8, 4096, 4), (8, 4096, 4))),
        *group("feature_imitation", (*maps, mask)),
        *group("pixel_kl", pixels),
        *group("pair_affinity", wide),
        *group("region_affinity", (*normal((2, 64, 64, 32), (2, 64, 64, 32)), regions)),
        *group("heatmap_mse", heatmaps, plain=plain.mean_square),
        *group("joint_structure", heatmaps),
    ]


def compare(case: Case, rounds: int, least: float) -> dict[str, Any]:
    """Returns the row of a case, from compiled values and gradients of both sides."""
    loss = getattr(losses, case.name)
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
    pairs = zip(*(jax.tree.leaves(results[name]) for name in sides), strict=True)
    cost = {name: costs(program) for name, program in compiled.items()}
    return {
        "loss": case.name,
        "shapes": [list(array.shape) for array in arrays],
        "flops": {name: each["flops"] for name, each in cost.items()},
        "temporary_bytes": {name: each["temporary_bytes"] for name, each in cost.items()},
        "milliseconds": {name: 1e3 * float(np.median(seconds[name])) / repeats for name in sides},
        "time_ratio": ratio(seconds["library"], seconds["plain"]),
        "difference": max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(b))) for a, b in pairs),
    }


def main(
    rounds: Annotated[int, tyro.conf.arg(help="number of timed rounds")] = 9,
    least: Annotated[float, tyro.conf.arg(help="minimum duration of a round of a loss, in seconds")] = 0.05,
    only: Annotated[str, tyro.conf.arg(help="substring of the names of the losses to measure")] = "",
    out: Annotated[Path | None, tyro.conf.arg(help="JSON file to write the results to")] = None,
) -> None:
    """Compares value and gradient of every loss with the plain formula's."""
    rows = []
    table = Table(title="value and gradient, library / plain formula", title_justify="left")
    for column in ("loss", "FLOPs", "memory, MiB", "plain, MiB", "ms", "plain, ms", "time ratio", "difference"):
        table.add_column(column, justify="left" if column == "loss" else "right")
    for case in cases():
        if only not in case.name:
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
    command(main)
