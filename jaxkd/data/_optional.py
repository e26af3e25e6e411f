"""Optional libraries, imported on first use, with errors that say what to install."""

from __future__ import annotations

import importlib
from types import ModuleType


def require(module: str, purpose: str) -> ModuleType:
    """Imports an optional library.

    Args:
      module: import name.
      purpose: feature that needs the library, for the error message.

    Returns:
      The module.

    Raises:
      ImportError: the library, or one that it imports, is not installed.

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
