"""The modules of docs/_site, which are no package, and the navigation of mkdocs.yml."""

import importlib.util
import re
import sys

from tests.structure import source

DOCS = source.ROOT / "docs"


def load(name):
    """Returns a module of docs/_site."""
    folder = str(DOCS / "_site")
    sys.path.insert(0, folder)  # its modules import each other
    try:
        spec = importlib.util.spec_from_file_location(f"docs_site_{name}", DOCS / "_site" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def navigation():
    """Returns the pages of the navigation, in its order."""
    text = (source.ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return re.findall(
        r"^ +- (?:[\w ]+: )?([\w/-]+\.md)$", text.partition("\nnav:\n")[2].partition("\ntheme:\n")[0], re.M
    )


def pages():
    """Returns the pages below docs/, as the navigation names them."""
    return sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
