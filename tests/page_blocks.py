"""Pages of the documentation, their Python blocks, headings and links.

A comment in the line above a block says how the block runs; without one, the blocks of a page run in their order, in
one namespace.

=====================  ============================================================================================
``<!-- alone -->``     a test of its own, in a namespace of its own
``<!-- NAME.py -->``   a script that another test runs in a process of its own, `SCRIPTS`
``<!-- no-test -->``   never: it needs a service, a data set, or another project
=====================  ============================================================================================

A page with the comment ``<!-- each block after the first -->`` has a setup, its first block, and blocks that are
independent: each is a test of its own, in a copy of the setup's namespace.
"""

import ast
import functools
import importlib.util
import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
READMES = sorted(path for folder in ("experiments", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.md"))

# Scripts of the pages, and the tests that run them.
SCRIPTS = {
    "distributed_example.py": "tests/parallel/distributed_page_test.py",
    "serve.py": "tests/weights/program_test.py",
    "segment.py": "tests/models/dense/serving_test.py",
}
# A block that imports one of these is skipped where it is not installed; any other import must work.
OPTIONAL = {"equinox", "gymnax", "keras", "torch", "wandb", "clu"}
# What a block that never runs must name: a directory of prepared sets, or a library that no extra installs.
UNAVAILABLE = ("data_dir", "wandb", "keras.", "GKDTrainer", "DistillationTrainer")

INDEPENDENT = "<!-- each block after the first -->"
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>[^\n]*?) -->\n)?(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```", re.S | re.M
)
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.S | re.M)
HEADING = re.compile(r"^#+ (?P<title>.*?)\s*$", re.M)
LINK = re.compile(r"(?<!!)\[[^\]\[]*(?:\[[^\]]*\][^\]\[]*)*\]\((?P<target>[^)\s]+)\)|!\[[^\]]*\]\((?P<image>[^)\s]+)\)")


class Block(NamedTuple):
    """A block of a page: its line, its code, and the mark above it."""

    line: int
    code: str
    mark: str


class Case(NamedTuple):
    """Blocks that run in one namespace, after a setup that several cases share."""

    page: str
    name: str
    blocks: tuple[Block, ...]
    setup: Block | None = None

    def optional(self) -> set[str]:
        """Returns the optional packages that the blocks import."""
        blocks = self.blocks if self.setup is None else (self.setup, *self.blocks)
        return {name for block in blocks for name in imports(block.code)} & OPTIONAL

    def run(self) -> dict:
        """Runs the blocks, and returns their namespace."""
        namespace = {"__name__": "page"} if self.setup is None else dict(_setup(self.page, self.setup))
        for block in self.blocks:
            execute(self.page, block, namespace)
        return namespace


def name_of(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks_of(text: str) -> list[Block]:
    return [Block(text[: m.start("code")].count("\n"), m["code"], m["mark"] or "") for m in BLOCK.finditer(text)]


def cases_of(path: pathlib.Path) -> list[Case]:
    """Returns the tests of a page."""
    page, text = name_of(path), path.read_text(encoding="utf-8")
    blocks = [block for block in blocks_of(text) if block.mark != "no-test" and not block.mark.endswith(".py")]
    alone = [Case(page, section_at(text, block.line), (block,)) for block in blocks if block.mark == "alone"]
    together = [block for block in blocks if block.mark != "alone"]
    if INDEPENDENT in text:
        setup, *rest = together
        return alone + [Case(page, section_at(text, block.line), (block,), setup) for block in rest]
    return ([Case(page, "page", tuple(together))] if together else []) + alone


def section_at(text: str, line: int) -> str:
    before = FENCE.sub("", "\n".join(text.split("\n")[: line - 1]))
    return slug([m["title"] for m in HEADING.finditer(before)][-1])


def execute(page: str, block: Block, namespace: dict) -> dict:
    # Leading blank lines give tracebacks the line numbers of the page.
    exec(compile("\n" * block.line + block.code, str(ROOT / page), "exec"), namespace)
    return namespace


@functools.cache
def _setup(page: str, block: Block) -> dict:
    return execute(page, block, {"__name__": "page"})


def imports(code: str) -> set[str]:
    """Returns the packages that a block imports.

    >>> sorted(imports("import jax.numpy as jnp; from equinox import nn"))
    ['equinox', 'jax']
    """
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.partition(".")[0])
    return found


def is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def slug(title: str) -> str:
    """Returns the anchor of a heading on GitHub.

    >>> slug("What does `fit` guarantee?"), slug("A & B")
    ('what-does-fit-guarantee', 'a--b')
    """
    title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def anchors_of(text: str) -> set[str]:
    """Returns the anchors of a page that GitHub and the site have in common.

    The site's Markdown joins consecutive spaces and hyphens to one hyphen.
    """
    titles = [m["title"] for m in HEADING.finditer(FENCE.sub("", text))]
    return {slug(title) for title in titles if re.sub(r"-+", "-", slug(title)).strip("-") == slug(title)}


def links_of(text: str) -> list[str]:
    """Returns the relative links of a page, and those of its images."""
    targets = [m["target"] or m["image"] for m in LINK.finditer(FENCE.sub("", text))]
    return [target for target in targets if not re.match(r"[a-z]+:|//", target)]


def broken(path: pathlib.Path) -> list[str]:
    """Returns the relative links of a page whose file or heading does not exist."""
    wrong = []
    for link in links_of(path.read_text(encoding="utf-8")):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors_of(target.read_text(encoding="utf-8"))):
            wrong.append(link)
    return wrong
