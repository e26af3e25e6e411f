"""Compares a cache with the teacher, transform, data and settings that are given."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxkd.cache import _examples, _manifest, _probes
from jaxkd.cache._program import Program

# Tolerances relative to the largest value: another device or another version of JAX may round differently. A teacher
# has many layers, and in bfloat16, more to round than a transform.
_TRANSFORM_TOLERANCE = 1e-3
_TEACHER_TOLERANCE = 0.02


def differences(
    path: pathlib.Path,
    stored: Mapping[str, Any],
    identity: Mapping[str, Any],
    transform: _probes.Transform | None,
    probe: Mapping[str, np.ndarray] | None = None,
) -> list[str]:
    """Returns one line for each difference between a cache and what is given.

    Parts of ``identity`` that are None or absent are not compared. ``stored`` is the manifest of the cache, ``probe``
    the set's probe examples, if the set is available.
    """
    lines = _manifest.compare(stored["identity"], identity)
    saved = _probes.load(path / "probes.npz", stored["probes"])
    if probe is not None and not any(line.startswith("data") for line in lines):
        names = stored["identity"]["data"]["entries"]
        cached = saved["examples"]
        if not np.array_equal(cached["index"], probe["index"]):
            lines.append(
                f"data: the probes have index {cached['index'].tolist()} in the cache, {probe['index'].tolist()} given"
            )
        elif line := _examples.content_difference(_examples.digests(cached, list(names)), probe, names):
            lines.append(line)
    given = _probes.effect(transform, saved["examples"], stored["identity"]["views"])
    if line := _probes.difference(saved["transform"], given, _TRANSFORM_TOLERANCE):
        lines.append(f"transform: {stored['transform']} in the cache, {_manifest.describe(transform)} given: {line}")
    return lines


def teacher_difference(path: pathlib.Path, stored: Mapping[str, Any], program: Program) -> list[str]:
    """Returns a line if the same weights give other outputs: another network or tap."""
    saved = _probes.load(path / "probes.npz", stored["probes"])
    line = _probes.difference(saved["teacher"], program.sample(saved["examples"]), _TEACHER_TOLERANCE)
    return [f"teacher: the same weights give other outputs: {line}"] if line else []
