"""The tables of ``docs/scale.md``, from the results."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.scale.costs import DEVICES, USED
from benchmarks.scale.networks import TOKENS
from benchmarks.scale.step import COLLECTIVES


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = "|".join(["---", *["---:"] * (len(heads) - 1)])
    return "\n".join([f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:,.2f}"


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Returns the page's tables by name."""
    networks = [
        (
            *(name, str(row["width"]), str(row["layers"]), f"{row['heads']} / {row['key_value_heads']}"),
            *(f"{row['mlp_width']:,}", f"{row['parameters'] / 1e9:.2f}"),
            *(f"{row['forward_flops'][part] / 1e9:.2f}" for part in ("layers", "head")),
        )
        for name, row in results["networks"].items()
    ]
    states = [
        (
            *(str(row["devices"]), row["rules"], *(_gigabytes(value) for value in row["bytes"].values())),
            _gigabytes(sum(row["bytes"].values())),
        )
        for row in results["state"]
    ]
    steps = [
        (
            *(str(row["devices"]), *(_gigabytes(row[name]) for name in ("argument_bytes", "temporary_bytes"))),
            *(_gigabytes(row.get(kind, 0.0)) for kind in COLLECTIVES[:3]),
            f"{max(map(abs, row['error_of_the_check'].values())):.1%}" if "error_of_the_check" in row else "–",
        )
        for row in results["step"]
    ]
    stored = [(row["codec"], f"{row['bytes_per_token']:,}", f"{row['bytes'] / 1e12:,.1f}") for row in results["cache"]]
    flops, days = results["training_flops"], []
    for kind, title in (("step", "teacher in every step"), ("cached", "cached teacher")):
        total = flops[kind] * TOKENS
        hours = [total / (USED * device.flops) / 3600 for device in DEVICES.values()]
        days.append((title, f"{flops[kind] / 1e9:.1f}", f"{total:.2e}", *(f"{each:,.0f}" for each in hours)))
    written = [
        (
            *(row["device"], str(row["sequences"]), _gigabytes(row["cache_bytes"])),
            *(f"{row['tokens_per_second']:,.0f}", f"{row['over_training']:.2f}"),
        )
        for row in results["generation"]
    ]
    return {
        "scale-networks": _table(
            (
                "network",
                "width",
                "layers",
                "heads / key-value heads",
                "MLP",
                "parameters, 10⁹",
                "layers, GFLOP",
                "head, GFLOP",
            ),
            networks,
        ),
        "scale-state": _table(("devices", "rules", "teacher", "student", "optimizer", "all, GB"), states),
        "scale-step": _table(
            (
                "devices",
                "state and batch, GB",
                "temporary, GB",
                "all-gather, GB",
                "all-reduce, GB",
                "reduce-scatter, GB",
                "check",
            ),
            steps,
        ),
        "scale-cache": _table(("stored", "bytes a token", "TB for 10¹¹ tokens"), stored),
        "scale-flops": _table(("training", "GFLOP a token", "FLOPs", *(f"{name}, hours" for name in DEVICES)), days),
        "scale-generation": _table(
            ("device", "sequences at once", "keys and values, GB", "tokens/s of a device", "time / training's"), written
        ),
    }


def filled(page: str, results: Mapping[str, Any]) -> str:
    """Returns a page with its tables written anew from the results."""
    for name, table in tables(results).items():
        pattern = re.compile(rf"(<!-- table: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        page, count = pattern.subn(lambda found, table=table: f"{found[1]}\n{table}\n\n{found[2]}", page)  # type: ignore[misc]
        if count != 1:
            raise ValueError(f"the page: expected one table {name}, found {count}")
    return page
