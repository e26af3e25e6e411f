"""The public names that the pages of the API show, by every form in which a text writes them."""

import functools
import pathlib
import re

DOCS = pathlib.Path(__file__).resolve().parents[1]
ROOT = DOCS.parent
_DIRECTIVE = re.compile(r"^::: (jaxkd[\w.]*)$", re.MULTILINE)


@functools.cache
def repository() -> str:
    """Returns the address of the repository, as mkdocs.yml names it."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    return re.search(r"^repo_url: (\S+?)/?$", text, re.MULTILINE)[1]


def shown(page: pathlib.Path) -> list[str]:
    """Returns the dotted names that a page of the API shows, in their order."""
    return _DIRECTIVE.findall(page.read_text(encoding="utf-8"))


def is_module(dotted: str) -> bool:
    """Returns whether a dotted name is a module or package of the source tree."""
    path = ROOT / dotted.replace(".", "/")
    return path.is_dir() or path.with_suffix(".py").is_file()


@functools.cache
def targets() -> dict[str, str]:
    """Returns the dotted name that each written form stands for: ``term``, ``objectives.term``, ``jaxkd.term``.

    A form that several names share is left out, and so is a module's name without its package.
    """
    found: dict[str, set[str]] = {}
    for page in sorted((DOCS / "api").glob("*.md")):
        for dotted in shown(page):
            parts = dotted.split(".")
            last = max(1, len(parts) - 1 - (is_module(dotted) and len(parts) > 2))
            for start in range(last + 1):
                if start < len(parts) and not (is_module(dotted) and start == len(parts) - 1 > 0):
                    found.setdefault(".".join(parts[start:]), set()).add(dotted)
    # The front repeats a few names of the packages.
    for name in ("term", "combine", "distill"):
        for dotted in found.get(name, set()):
            found[f"jaxkd.{name}"] = {dotted}
    return {form: next(iter(dotted)) for form, dotted in found.items() if len(dotted) == 1}
