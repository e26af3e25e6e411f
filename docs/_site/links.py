"""MkDocs hook: links to files outside of the site, and links from names in pages to the API.

A page is written for the repository, where ``../experiments/digits/README.md`` is a file. On the site, a link to such a
file leads to the repository, and a picture is copied. A link to a file that does not exist is a warning, which is an
error of a strict build.
"""

import html
import logging
import os
import pathlib
import re
import sys
import tomllib

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import names

_SEARCH = tomllib.loads((pathlib.Path(__file__).parent / "search.toml").read_text(encoding="utf-8"))
_LOG = logging.getLogger("mkdocs.hooks.links")
_PICTURES = {".png", ".svg", ".jpg", ".gif", ".webp"}
# A link of Markdown, or an attribute of HTML. Code is left alone.
_CODE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2[`~]* *$|`+[^`\n]+`+", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"""(\]\(<?|(?:src|href)=["'])([^)\s"'>#]+)""")
_ELSEWHERE = re.compile(r"^(?:[a-z]+:|/|\{)")
# What is linked already, and what is no running text.
_FIXED = re.compile(r"<(pre|a|autoref|h[1-6])\b.*?</\1>", re.DOTALL)
_NAME = re.compile(r"<code>([A-Za-z_][\w.]*)(\([^<]*\))?</code>")


def on_files(files: Files, **_: object) -> None:
    """Warns of pages that search.toml lists and that do not exist."""
    for page in _SEARCH["tags"]:
        if files.get_file_from_path(page) is None:
            _LOG.warning("docs/_site/search.toml lists %s, which does not exist", page)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Resolves the links of a page that lead out of the site; ``include:`` shows a file of the repository instead."""
    _weigh(page)
    source = names.DOCS / page.file.src_uri
    if include := page.meta.get("include"):
        source = names.ROOT / include
        if not source.is_file():
            _LOG.warning("%s includes %s, which does not exist", page.file.src_uri, include)
            return markdown
        markdown = source.read_text(encoding="utf-8")

    def replaced(match: re.Match[str]) -> str:
        return match[1] + _resolved(match[2], source, page, config, files)

    out, end = [], 0
    for code in _CODE.finditer(markdown):
        out += [_LINK.sub(replaced, markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*out, _LINK.sub(replaced, markdown[end:])])


def _weigh(page: Page) -> None:
    """Gives a page its tags, which the search reads, and its weight among the results."""
    page.meta.setdefault("tags", [*_SEARCH["tags"].get(page.file.src_uri, [])])
    if page.parent is None:
        page.meta.setdefault("hide", ["navigation"])  # it would list this page alone
    for folder, boost in _SEARCH["boosts"].items():
        if page.file.src_uri.startswith(folder):
            page.meta.setdefault("search", {"boost": boost})


def _resolved(link: str, source: pathlib.Path, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns a link as the site needs it."""
    if _ELSEWHERE.match(link):
        return link
    target = pathlib.Path(os.path.normpath(source.parent / link))
    if not target.is_relative_to(names.ROOT) or not target.exists():
        if source.is_relative_to(names.DOCS) and target.is_relative_to(names.DOCS):
            return link  # MkDocs reports it
        _LOG.warning("%s links to %s, which does not exist", page.file.src_uri, link)
        return link
    path = target.relative_to(names.ROOT).as_posix()
    page_folder = (names.DOCS / page.file.src_uri).parent
    if target.is_relative_to(names.DOCS) and target.suffix not in (".py", ".ipynb") and target.is_file():
        return os.path.relpath(target, page_folder)
    if target.suffix.lower() in _PICTURES:
        copy = f"files/{path}"
        if files.get_file_from_path(copy) is None:
            files.append(File.generated(config, copy, abs_src_path=str(target)))
        return os.path.relpath(names.DOCS / copy, page_folder)
    return f"{names.repository()}/{'tree' if target.is_dir() else 'blob'}/main/{path}"


def on_page_content(html: str, **_: object) -> str:
    """Links public names in code to the API."""
    out, end = [], 0
    for fixed in _FIXED.finditer(html):
        out += [_NAME.sub(_linked, html[end : fixed.start()]), fixed[0]]
        end = fixed.end()
    return "".join([*out, _NAME.sub(_linked, html[end:])])


def _linked(match: re.Match[str]) -> str:
    name = match[1]
    target = names.targets().get(name) if "." in name or "_" in name else None
    return match[0] if target is None else f'<autoref optional identifier="{html.escape(target)}">{match[0]}</autoref>'
