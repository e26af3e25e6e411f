"""The site's pages: the navigation has all of them, and those of the API show each public name once."""

import ast
import collections

import pytest

from tests.site import source_of_site as site
from tests.structure import source

NAMES = site.load("names")
MARKUP = site.load("markup")
SHOWN = [dotted for page in sorted((site.DOCS / "api").glob("*.md")) for dotted in NAMES.shown(page)]


def names_of(module):
    """Returns the public names of a module: its ``__all__``, or all that it defines without an underscore."""
    if listed := source.public_names(module):
        return [name for name in listed if not source.is_module(f"{module}.{name}")]
    names = []
    for node in source.tree_of((source.ROOT / module.replace(".", "/")).with_suffix(".py")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return [name for name in names if not name.startswith("_")]


def modules_below(package):
    """Yields a package's public modules: folders, and modules in ``__all__``."""
    folder = source.ROOT / package.replace(".", "/")
    folders = [path.parent.name for path in folder.glob("*/__init__.py") if not path.parent.name.startswith("_")]
    listed = [name for name in source.public_names(package) if source.is_module(f"{package}.{name}")]
    yield from (f"{package}.{name}" for name in sorted({*folders, *listed}))


def public():
    """Returns each public name by the shortest path to it: a package repeats names of the modules below it."""
    found = [f"jaxkd.types.{name}" for name in names_of("jaxkd.types")]
    for package in source.packages():
        own = names_of(package)
        found += [f"{package}.{name}" for name in own]
        for module in modules_below(package):
            found += [f"{module}.{name}" for name in names_of(module) if name not in own]
    return found


def test_every_public_name_is_on_one_page_of_the_api():
    names = [dotted for dotted in SHOWN if not source.is_module(dotted)]
    missing = sorted(set(public()) - set(names))
    assert not missing, f"docs/api/ lacks these names; add a line `::: name` for each: {missing}"
    assert not (unknown := sorted(set(names) - set(public()))), f"docs/api/ shows names that are not public: {unknown}"
    assert not (twice := [name for name, count in collections.Counter(SHOWN).items() if count > 1]), twice


def test_every_package_has_a_page_of_its_own():
    for package in [*source.packages(), "jaxkd.types"]:
        page = site.DOCS / "api" / f"{package.removeprefix('jaxkd.')}.md"
        assert page.is_file(), page
        assert all(name == package or name.startswith(f"{package}.") for name in NAMES.shown(page)), page
        assert NAMES.shown(page)[0] == package


def test_the_navigation_lists_every_page_and_every_page_exists():
    assert sorted(site.navigation()) == site.pages()
    assert len(site.navigation()) == len(set(site.navigation()))


def test_every_folder_of_the_package_has_an_init_file():
    """Griffe, which reads the docstrings, does not follow imports from a folder without one."""
    folders = {path.parent for path in source.files("jaxkd")}
    assert [source.name_of(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("soft_target_kl", "jaxkd.losses.soft_target_kl"),
        ("losses.soft_target_kl", "jaxkd.losses.soft_target_kl"),
        ("jaxkd.distill", "jaxkd.distillers.distill"),
        ("phases.Stage", "jaxkd.schemes.phases.Stage"),
        ("jaxkd.models.vision", "jaxkd.models.vision"),
        ("losses", None),
    ],
)
def test_names_in_texts_lead_to_the_api(written, name):
    assert NAMES.targets().get(written) == name


def test_docstrings_become_markdown():
    docstring = (
        "Summary of `term`, of ``term`` and of `unknown`.\n\n"
        "=========  ==========\n"
        "`combine`  a sum, of\n"
        "           several\n"
        "`a`, `b`   one\n"
        "`c`\n"
        "=========  ==========\n\n"
        "Args:\n  x: a number.\n\n"
        "  >>> f(1)\n  2\n\n"
        "Returns:\n  One value,\n  and another.\n\n"
        ">>> g(1)\n3"
    )
    assert MARKUP.rewrite(docstring) == (
        "Summary of [`term`][jaxkd.objectives.term], of ``term`` and of `unknown`.\n\n\n"
        "|  |  |\n| --- | --- |\n"
        "| [`combine`][jaxkd.objectives.combine] | a sum, of several |\n"
        "| `a`, `b`, `c` | one |\n\n\n"
        "Args:\n  x: a number.\n\n"
        "  ```pycon\n  >>> f(1)\n  2\n  ```\n\n"
        "Returns:\n  One value,\n    and another.\n\n"
        "```pycon\n>>> g(1)\n3\n```"
    )
