"""docs/methods.md: the functions it names exist, and its acronyms and those of docstrings agree in both directions."""

import functools
import inspect
import pathlib
import re
from typing import NamedTuple

import pytest

import jaxkd
from experiments.classification.study.main import ROWS as ROWS_OF_THE_STUDY
from jaxkd import adapters, data, losses, objectives, schemes, teachers, training, weights

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "methods.md"
TEXT = PAGE.read_text(encoding="utf-8")
PACKAGES = {"losses": losses, "objectives": objectives, "schemes": schemes, "teachers": teachers}
# `jaxkd` does not import these by itself; once imported, the names on the page resolve.
OTHERS = (adapters, data, training, weights)
# Building blocks of objectives rather than methods.
# Parts of methods, which are no methods themselves.
TOOLS = {"combine", "lookup", "mask_out", "masked_mean", "reduce_values", "replace", "term", "with_projection"}
TOOLS |= {"match_size", "reverse_gradient", "singular_directions", "continual", "discriminators", "layers"}


class Row(NamedTuple):
    """A method of the page's tables."""

    method: str
    acronyms: list[str]
    functions: list[str]
    section: str
    experiments: list[str]


def names(text):
    """Dotted names in backquotes, such as ``losses.dist``; file names and bare words are left out."""
    return [name for name in re.findall(r"`((?:\w+\.)+\w+)`", text) if not name.startswith("jaxkd.")]


def rows():
    found, section = [], ""
    for line in TEXT.splitlines():
        section = line.removeprefix("## ") if line.startswith("## ") else section
        row = [c.strip() for c in line.strip("|").split("|")]
        if not line.startswith("| ") or row[0] == "method":
            continue
        assert len(row) == 6, f"another number of columns in docs/methods.md: {line}"
        links = re.findall(r"\]\((\.\./experiments/[^)#]*)", row[5])
        found.append(Row(row[0], [a for a in row[2].split(", ") if a], names(row[3]), section.split()[0], links))
    return found


def public(package):
    """Public functions of a package and of its subpackages by name."""
    parts = [package, *(x for x in vars(package).values() if inspect.ismodule(x) and hasattr(x, "__path__"))]
    members = {name: getattr(part, name) for part in parts for name in getattr(part, "__all__", ())}
    return {name: member for name, member in members.items() if not inspect.ismodule(member)}


def resolve(name):
    return functools.reduce(getattr, name.split("."), jaxkd)


def also_known_as(function):
    """Acronyms in the line "Also known as: ..." of a docstring: words with two capitals or more."""
    found = re.search(r"^Also known as:(.*?)(?:\n\n|\Z)", inspect.getdoc(function) or "", re.MULTILINE | re.DOTALL)
    words = re.findall(r"[\w-]+", found[1]) if found else []
    return [word for word in words if len(re.findall("[A-Z]", word)) > 1]


def contains(text, word):
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


ROWS = rows()


@pytest.mark.parametrize("name", sorted({*names(TEXT), "distill"}))
def test_every_name_on_the_page_exists(name):
    resolve(name)


@pytest.mark.parametrize("package", ["losses", "objectives"])
def test_every_public_function_is_on_the_page(package):
    listed = {name.rpartition(".")[2] for name in names(TEXT) if name.startswith(f"{package}.")}
    missing = set(PACKAGES[package].__all__) - listed - TOOLS
    assert not missing, f"docs/methods.md has no row with {sorted(missing)}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_acronym_of_a_docstring_is_on_the_page(package):
    missing = {
        f"{package}.{name}": acronym
        for name, function in public(PACKAGES[package]).items()
        for acronym in also_known_as(function)
        if not contains(TEXT, acronym)
    }
    assert not missing, f"docs/methods.md lacks acronyms of docstrings: {missing}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_function_of_a_row_has_an_acronym_of_the_row(package):
    missing = {
        name: row.acronyms
        for row in ROWS
        for name in row.functions
        if name.startswith(f"{package}.")
        and row.acronyms
        and not any(contains(inspect.getdoc(resolve(name)) or "", acronym) for acronym in row.acronyms)
    }
    assert not missing, f"docstrings without an acronym of their row in docs/methods.md: {missing}"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_acronym_of_a_row_is_in_a_docstring(package):
    missing = {
        acronym: row.functions
        for row in ROWS
        for acronym in row.acronyms
        if row.functions[0].startswith(f"{package}.")  # the row's package; others may share the method
        and not any(contains(inspect.getdoc(resolve(name)) or "", acronym) for name in row.functions)
    }
    assert not missing, f"acronyms of docs/methods.md that no docstring of their row has: {missing}"


def test_an_acronym_has_a_function():
    assert [row.method for row in ROWS if row.acronyms and not row.functions] == []


def test_losses_have_an_experiment():
    compared = ("Response", "Features", "Relations")
    assert [row.method for row in ROWS if row.section in compared and not row.experiments] == []
    pages = {link for row in ROWS for link in row.experiments}
    assert [link for link in sorted(pages) if not (PAGE.parent / link).is_file()] == []


def test_methods_of_the_study_link_it():
    study = "../experiments/classification/README.md"
    for name, one in ROWS_OF_THE_STUDY.items():
        rows = [row for row in ROWS if one.covers and row.method.startswith(one.covers)]
        assert len(rows) == (name != "student"), f"{name}: {one.covers!r} begins {len(rows)} rows of docs/methods.md"
        assert all(study in row.experiments for row in rows), name
