"""Optional libraries, imported when they are first needed, with an error that says what to install."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, purpose: str) -> ModuleType:
    """Import an optional library.

    Args:
      module: its import name.
      purpose: what it is needed for; the error says it.

    Returns:
      The module.

    Raises:
      ImportError: it, or something that it imports, is not installed.

    >>> require("json", purpose="reading configurations").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise ImportError(
            f"{purpose} needs {module!r}, and {missing!r} could not be imported ({error}). Install it with: "
            'pip install "jaxkd-toolkit[data]"',
            name=missing,
        ) from error
