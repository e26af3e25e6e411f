"""The device and the package versions that a number was computed with."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def packages(*more: str) -> dict[str, str]:
    """Returns the versions of Python, of `PACKAGES` and of further packages."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in (*PACKAGES, *more)
    }


def device() -> str:
    """Returns the kind of the first device."""
    return str(jax.devices()[0].device_kind)


def record() -> dict[str, Any]:
    """Returns the device and the versions, as a cell keeps them."""
    return {"device": device(), "versions": packages()}
