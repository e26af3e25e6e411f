"""The command: computes the results, writes them, and prints the tables of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import jax

from benchmarks.common import command, described, machine
from benchmarks.scale import costs, networks, page, step
from jaxkd.training import write_atomically

RESULTS = Path("benchmarks/results/scale.json")


def main(
    devices: Annotated[tuple[int, ...], described("simulated devices of each pod")] = (64, 256),
    compile: Annotated[bool, described("compile the steps; otherwise, those of the results are used")] = True,
    out: Annotated[Path, described("JSON file of the results, whose compiled steps are not compiled again")] = RESULTS,
) -> None:
    """Computes memory, bytes and FLOPs, writes them and prints the tables."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(devices))
    results: dict[str, Any] = {
        **{"machine": machine(), "tokens": networks.TOKENS, "words": networks.WORDS, "sequence": networks.SEQUENCE},
        **{"chunk": step.CHUNK, "used": costs.USED, "networks": networks.networks(), "state": step.state_rows(devices)},
        **{"cache": costs.cache_rows(), "training_flops": costs.training_flops()},
        "generation": costs.generation_rows(),
        "compiled": json.loads(out.read_text())["compiled"] if out.exists() else [],
    }
    done = {(row["devices"], *row["layers"]) for row in results["compiled"]}
    for layers in (*step.COMPILED, step.CHECKED) if compile else ():
        for count in devices:
            if (count, *layers) not in done:
                row = step.compiled(count, layers)
                print(row, flush=True)
                results["compiled"].append(row)
                _write(out, results)
    results["step"] = [step.whole(results["compiled"], count) for count in devices]
    _write(out, results)
    for name, table in page.tables(results).items():
        print(f"{name}\n{table}\n")


def _write(out: Path, results: Any) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    command(main)
