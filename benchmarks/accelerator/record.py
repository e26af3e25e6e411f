"""Results of a part on disk: written after each case, resumed by the next call."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.accelerator.timing import Box
from jaxkd.training import write_atomically

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Case(NamedTuple):
    """One measurement.

    Attributes:
      name: name in the results.
      least: seconds that must be left for it to be started, compilation included.
      run: ``(box) -> row``.
      resumes: whether it resumes what an interrupted process has done.
    """

    name: str
    least: float
    run: Callable[[Box], dict[str, Any]]
    resumes: bool = False


def source() -> str:
    """Returns a digest of the source that is measured, so that results of another one are not resumed."""
    digest = hashlib.sha256()
    for folder in ("jaxkd", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def machine() -> dict[str, Any]:
    """Returns the machine and the versions; it starts JAX's backend."""
    import importlib.metadata
    import os

    import jax

    device = jax.devices()[0]
    memory = memory_stats()
    return {
        "platform": device.platform,
        "device_kind": device.device_kind,
        "devices": jax.device_count(),
        "device_bytes": memory.get("bytes_limit"),
        "runtime": getattr(device.client, "platform_version", "").splitlines()[:1],
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "source": source(),
    }


def memory_stats() -> dict[str, int]:
    """Returns the memory statistics of the first device; empty where it has none, such as a CPU."""
    import jax

    found: dict[str, int] | None = jax.devices()[0].memory_stats()
    return dict(found or {})


class Record:
    """The file of a part's results.

    Attributes:
      content: what is written: ``part``, ``machine``, ``settings``, the cases that are ``planned``, ``rows`` of those
        with a result, the names of those ``not_reached``, of which some were ``interrupted``, and the one ``running``.
    """

    def __init__(self, path: Path, part: str, machine: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Starts a record, with the rows of an earlier one of the same machine, source and settings."""
        self.path = path
        self.content: dict[str, Any] = {
            "part": part,
            "machine": dict(machine),
            "settings": dict(settings),
            "planned": [],
            "rows": [],
            "not_reached": [],
            "interrupted": [],
            "running": None,
        }
        if path.exists():
            earlier = json.loads(path.read_text())
            if all(earlier[name] == self.content[name] for name in ("machine", "settings")):
                self.content["rows"] = [row for row in earlier["rows"] if "error" not in row]
                before = [*earlier["interrupted"], earlier["running"]]
                self.content["interrupted"] = [name for name in dict.fromkeys(before) if name is not None]

    @property
    def done(self) -> set[str]:
        """Names of the cases that have a result."""
        return {row["case"] for row in self.content["rows"]}

    def write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, json.dumps(self.content, indent=1) + "\n")

    def run(self, cases: Sequence[Case], box: Box, say: Callable[[str], None] = print) -> None:
        """Runs the cases that have no result, in their order, as far as they fit into the box.

        A case that was interrupted, because it takes longer than the whole box, comes last: it must not keep the next
        calls from the others.
        """
        self.content["planned"] = [case.name for case in cases]
        left = [case for case in cases if case.name not in self.done]
        left.sort(key=lambda case: not case.resumes and case.name in self.content["interrupted"])
        self.content["not_reached"] = [case.name for case in left]
        self.write()
        for case in left:
            if not box.fits(case.least):
                say(f"{case.name}: not reached, {box.left:.0f} s left of at least {case.least:.0f} s")
                continue
            self.content["running"] = case.name
            self.write()
            start = box.clock()
            row = {"case": case.name, **_outcome(case, box)}
            row["case_seconds"] = round(box.clock() - start, 3)
            self.content["rows"].append(row)
            self.content["running"] = None
            for names in ("not_reached", "interrupted"):
                self.content[names] = [name for name in self.content[names] if name != case.name]
            self.write()
            say(f"{case.name}: {summary(row)}")


def _outcome(case: Case, box: Box) -> dict[str, Any]:
    """Returns a case's row; a device without enough memory is a result, and another error is reported."""
    try:
        return case.run(box)
    except Exception as error:
        text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        if "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower():
            return {"out_of_memory": text}
        return {"error": text}


def summary(row: Mapping[str, Any]) -> str:
    """Returns a row's scalars as one line.

    >>> summary({"case": "a", "seconds": 0.25, "name": "b", "list": [1]})
    'seconds 0.25, name b'
    """
    kept = {name: value for name, value in row.items() if name != "case" and isinstance(value, int | float | str)}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in kept.items()
    )
