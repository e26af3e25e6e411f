"""Tables of the benchmarks, from ``benchmarks/results``."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

from benchmarks.scale import page as plan
from experiments.kit import report
from experiments.tables import committed
from experiments.tables.cells import table
from experiments.tables.pages import ROOT, Maker

RESULTS = ROOT / "benchmarks" / "results"
MIB = 2.0**20
ONE_PASS = {
    "cross_entropy and soft_target_kl": "cross_entropy and soft_target_kl in one pass",
    "the two, of an embedding table": "both in one pass, of an embedding table",
}


def rows_of(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = committed.read(RESULTS / f"{name}.json")["rows"]
    return rows


def _median(quartiles: list[float], digits: int = 2) -> str:
    return f"{quartiles[1]:.{digits}f}"


def step(page: pathlib.Path) -> str:
    """Returns FLOPs, memory and speed of composed steps, relative to hand-written ones with the same losses."""
    lines = []
    cases: dict[str, dict[str, Any]] = {}
    for row in rows_of("step"):
        cases.setdefault(row["case"], {})[row["mode"]] = row
    for case, modes in cases.items():
        loop, scan = modes["loop"], modes["scan"]
        same = loop["of_the_same_losses"]
        flops, memory = (loop[key]["composed"] / same[key] for key in ("flops", "temporary_bytes"))
        traces = f"{loop['traces']['composed']} / {loop['traces']['handwritten']}"
        speeds = (_median(loop["speed_ratio"]), _median(scan["speed_ratio"]))
        lines.append((case, f"{flops:.3f}", f"{memory:.3f}", traces, *speeds))
    head = ("composed over hand-written", "FLOPs", "temporary memory", "traces", "steps per second, loop", "scan")
    return table(head, lines)


def peers(page: pathlib.Path) -> str:
    """Returns the steps per second of ``fit`` over those of other trainers."""
    rows = [row for row in rows_of("peers") if not row["side"].startswith("jaxkd")]
    sides, batches = (list(dict.fromkeys(row[key] for row in rows)) for key in ("side", "batch"))
    speeds = {(row["batch"], row["side"]): _median(row["fit_over_it"]) for row in rows}
    lines = [(f"MLP, batch {batch}", *(speeds[batch, side] for side in sides)) for batch in batches]
    return table(("steps per second of `fit` over", *sides), lines)


def cached(page: pathlib.Path) -> str:
    """Returns the time of an epoch with a cached teacher over that of other epochs."""
    columns = {"alone": "the student alone", "column": "targets in a column of the set", "live": "a live teacher"}
    lines = [(row["case"], *(f"{row['cached_time_over'][key]:.2f}" for key in columns)) for row in rows_of("cached")]
    return table(("time of an epoch with a cached teacher over", *columns.values()), lines)


def tokens(page: pathlib.Path) -> str:
    """Returns ratios of the steps of a language model, with quartiles."""
    of = {row["case"]: row for row in rows_of("tokens")}
    policy, composed, cache = of["on-policy"], of["composed"], of["cached"]
    told = "sampling, teacher and update on-policy: tokens per second over TRL's `GKDTrainer`"
    lines = [
        (told, *_quartiles(policy["times_as_fast"])),
        ("composed over hand-written step: FLOPs", f"{composed['flops_ratio']:.3f}", ""),
        ("composed over hand-written step: steps per second", *_quartiles(composed["speed_ratio"])),
        (
            f"epoch with a cache of the top {cache['cache']['k']} words over the student alone: time",
            *_quartiles(cache["cached_time_over_alone"]),
        ),
        ("the same: FLOPs", f"{cache['flops']['cached'] / cache['flops']['alone']:.2f}", ""),
    ]
    return table(("comparison", "ratio", "quartiles"), lines)


def _quartiles(ratios: list[float]) -> tuple[str, str]:
    return _median(ratios), f"{ratios[0]:.2f} to {ratios[2]:.2f}"


def memory(page: pathlib.Path, *, file: str = "memory") -> str:
    """Returns the temporary memory of losses over a vocabulary, dense and in chunks."""
    rows = [row for row in rows_of(file) if isinstance(row.get("temporary_bytes"), dict) and "tokens" in row]
    names = {row["loss"]: row for row in rows}
    lines = []
    for name, row in names.items():
        called = re.sub(r"\b[a-z]+_\w+", r"`\g<0>`", ONE_PASS.get(name, name))
        taken = row["temporary_bytes"]
        dense, *chunked = (f"{taken[key] / MIB:,.0f}" for key in ("dense", "chunked") if key in taken)
        lines.append((called, dense, *(chunked or [report.NONE]), saving(row)))
    first = rows[0]
    hidden = " and ".join(map(str, first["hidden"]))
    sizes = f"{first['tokens']:,} tokens × {first['vocabulary']:,} words, hidden {hidden}"
    return table((sizes, "dense, MiB", "chunked, MiB", "saving"), lines)


def saving(row: Mapping[str, Any]) -> str:
    """Returns how many times less memory a loss takes in chunks, where it has chunks."""
    return f"{row['memory_saving']:.0f}×" if "chunked" in row["temporary_bytes"] else report.NONE


def relations(page: pathlib.Path) -> str:
    """Returns the temporary memory of relations between examples by the size of the batch."""
    rows = [row for row in rows_of("memory") if "batch" in row]
    batches = sorted({row["batch"] for row in rows})
    of = {(row["loss"], row["batch"]): f"{row['temporary_bytes'] / MIB:,.0f}" for row in rows}
    names = dict.fromkeys(row["loss"] for row in rows)
    lines = [(f"`{name}`", *(of.get((name, batch), report.NONE) for batch in batches)) for name in names]
    features = rows[0]["features"]
    return table((f"MiB, {features} features", *(f"batch {batch:,}" for batch in batches)), lines)


def seeds(page: pathlib.Path) -> str:
    """Returns the speed of several seeds as one program, over one after the other."""
    rows = rows_of("seeds")
    counts = sorted({row["seeds"] for row in rows})
    of = {(row["case"], row["seeds"]): _median(row["speed_ratio"]) for row in rows}
    cases = dict.fromkeys(row["case"] for row in rows)
    lines = [(case, *(of.get((case, count), report.NONE) for count in counts)) for case in cases]
    return table(("images per second, vmapped over in turn", *(f"{n} seed{'s'[: n > 1]}" for n in counts)), lines)


def losses(page: pathlib.Path) -> str:
    """Returns time and memory of each loss, with its gradient."""
    lines = []
    for row in rows_of("losses"):
        shapes = " ".join("×".join(map(str, shape)) for shape in row["shapes"][:1])
        numbers = (row["milliseconds"]["library"], row["time_ratio"], row["temporary_bytes"]["library"] / MIB)
        lines.append((f"`{row['loss']}`", shapes, *(f"{number:.2f}" for number in numbers)))
    head = ("loss, value and gradient", "student", "ms", "time over a plain formula", "temporary memory, MiB")
    return table(head, lines)


def placement(page: pathlib.Path) -> str:
    """Returns the bytes of a state that each device stores."""
    lines = [
        (str(row["devices"]), *(f"{row['bytes'][key] / MIB:.1f}" for key in ("replicated", "fully_sharded")))
        for row in rows_of("placement")
    ]
    return table(("devices", "replicated, MiB a device", "fully sharded, MiB a device"), lines)


def scale(page: pathlib.Path, *, name: str) -> str:
    """Returns a table of the plan of a pod."""
    return plan.tables(committed.read(RESULTS / "scale.json"))[name]


ALL = (step, peers, cached, tokens, memory, relations, seeds, losses, placement)
TABLES: Mapping[str, Maker] = {f"speed_{made.__name__}": made for made in ALL} | {"scale": scale}
