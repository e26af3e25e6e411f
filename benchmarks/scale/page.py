"""The tables of ``docs/scale.md``, from the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.scale.costs import DEVICES, USED
from benchmarks.scale.networks import TOKENS
from benchmarks.scale.step import COLLECTIVES as KINDS

COLLECTIVES = KINDS[:2]  # those that the programs have


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = "|".join(["---", *["---:"] * (len(heads) - 1)])
    return "\n".join([f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:,.2f}"


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Returns the page's tables by name; `experiments.tables` writes them there."""
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
    compiled = [
        (
            *(str(row["devices"]), f"{row['layers'][0]} + {row['layers'][1]}"),
            *(_gigabytes(row[name]) for name in ("argument_bytes", "temporary_bytes")),
            *(_gigabytes(row["collective_bytes"].get(kind, 0)) for kind in COLLECTIVES),
        )
        for row in sorted(results["compiled"], key=lambda row: (row["devices"], row["layers"][::-1]))
    ]
    steps = [
        (
            *(str(row["devices"]), _gigabytes(row["argument_bytes"])),
            *(f"{row[name] / 1e9:,.1f}" for name in ("temporary_bytes", "temporary_bytes_of_a_layer")),
            *(_gigabytes(row.get(kind, 0.0)) for kind in COLLECTIVES),
            *_checks(row.get("check")),
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
        "networks": _table(
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
        "state": _table(("devices", "rules", "teacher", "student", "optimizer", "all, GB"), states),
        "compiled": _table(
            (*("devices", "layers", "state and batch, GB", "temporary, GB"), *(f"{kind}, GB" for kind in COLLECTIVES)),
            compiled,
        ),
        "step": _table(
            (
                *("devices", "state and batch, GB", "temporary, GB", "of which a layer, GB"),
                *(f"{kind}, GB" for kind in COLLECTIVES),
                *("error of temporary", "largest other error"),
            ),
            steps,
        ),
        "cache": _table(("stored", "bytes a token", "TB for 10¹¹ tokens"), stored),
        "flops": _table(("training", "GFLOP a token", "FLOPs", *(f"{name}, hours" for name in DEVICES)), days),
        "generation": _table(
            ("device", "sequences at once", "keys and values, GB", "tokens/s of a device", "time / training's"), written
        ),
    }


def _checks(found: Mapping[str, float] | None) -> tuple[str, str]:
    """Returns the relative errors of the extrapolation at the checked step."""
    if found is None:
        return "–", "–"
    others = max(abs(error) for name, error in found.items() if name != "temporary_bytes")
    return f"{found['temporary_bytes']:+.0%}", f"{others:.1%}"
