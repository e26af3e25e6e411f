"""What a number was computed with."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def found() -> dict[str, Any]:
    """The device and the versions of what computes on it."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    device = jax.devices()[0]
    return {"device": device.device_kind, "versions": {"python": platform.python_version(), **packages}}
