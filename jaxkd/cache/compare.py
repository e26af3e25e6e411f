"""What a cache was made from against what it is asked for, line by line."""

from __future__ import annotations

import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkd.teachers.cache import examples, manifest, probes
from jaxkd.teachers.cache.program import Program

__all__ = ["another_teacher", "contents_of", "differences"]

_SAME_TRANSFORM = 1e-3  # of the largest value: what another device or another version may round differently
_SAME_TEACHER = 0.02


def differences(
    path: pathlib.Path,
    stored: Mapping[str, Any],
    identity: Mapping[str, Any],
    transform: probes.Transform | None,
    probe: Mapping[str, np.ndarray] | None = None,
) -> list[str]:
    """Where a cache differs from what it is asked for.

    Args:
      path: of the cache.
      stored: its manifest.
      identity: what is asked for; parts that are None or not there are not compared.
      transform: the one to train with.
      probe: the examples of the set that are probes, if the set is at hand.

    Returns:
      One line each; none if they are the same.
    """
    lines = manifest.compare(stored["identity"], identity)
    kept = probes.load(path / "probes.npz")
    if probe is not None and not any(line.startswith("data") for line in lines):
        names = stored["identity"]["data"]["entries"]
        there = kept["examples"]
        if not np.array_equal(there["index"], probe["index"]):
            lines.append(f"data: the probes' index was {there['index'].tolist()} and is {probe['index'].tolist()}")
        elif line := examples.differing(examples.digests(there, list(names)), probe, names):
            lines.append(line)
    here = probes.effect(transform, kept["examples"], stored["identity"]["views"])
    if line := probes.difference(kept["transform"], here, _SAME_TRANSFORM):
        lines.append(f"transform: {stored['transform']} there, {manifest.describe(transform)} here: {line}")
    return lines


def another_teacher(path: pathlib.Path, program: Program) -> list[str]:
    """Equal weights in another network, or at other taps, are another teacher.

    Args:
      path: of the cache.
      program: of the teacher at hand.

    Returns:
      A line, or none.
    """
    kept = probes.load(path / "probes.npz")
    line = probes.difference(kept["teacher"], program.sample(kept["examples"]), _SAME_TEACHER)
    return [f"teacher: the same weights give other outputs: {line}"] if line else []


def contents_of(index: np.ndarray, digests: np.ndarray) -> str:
    """One digest of which examples there are, in which order.

    >>> contents_of(np.arange(2), np.array([7, 8], np.uint64)) == contents_of(np.arange(2), np.array([8, 7], np.uint64))
    False
    """
    state = hashlib.sha256(np.asarray(index, "<i8").tobytes())
    state.update(np.asarray(digests, "<u8").tobytes())
    return f"sha256:{state.hexdigest()[:16]}"
