"""Griffe extension: docstrings as Markdown, with links to their sources."""

import pathlib
import sys
from typing import Any

import griffe

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import markup
import names


class SiteDocstrings(griffe.Extension):
    """Rewrites the docstring of every object that is loaded."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrites one docstring, and adds a link to the source of a function or class of a module."""
        if obj.docstring is None:
            return
        text = markup.rewrite(obj.docstring.value)
        if (obj.is_function or obj.is_class) and obj.parent is not None and obj.parent.is_module:
            path = obj.relative_package_filepath.as_posix()
            text += f"\n\n[source]({names.repository()}/blob/main/{path}#L{obj.lineno}){{ .source-link }}"
        obj.docstring.value = text
