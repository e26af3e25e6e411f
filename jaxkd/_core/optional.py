"""Optional libraries, imported on first use, with errors that say what to install."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, purpose: str, extra: str = "data") -> ModuleType:
    """Imports an optional library, or raises an error that names its extra.

    >>> require("json", purpose="reading configurations").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise ImportError(
            f"{purpose} needs {module!r}, and {missing!r} could not be imported ({error}). Install it with: "
            f'pip install "jaxkd-toolkit[{extra}]"',
            name=missing,
        ) from error
