"""Rule 6 of the design: a file is one concept of at most 450 lines, and a folder holds at most 15 files."""

import collections

import pytest

from tests.structure import source

FILES = [path for folder in ("jaxkd", *source.OUTSIDE) for path in source.files(folder)]


@pytest.mark.parametrize("path", FILES, ids=source.name_of)
def test_a_file_has_at_most_450_lines(path):
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 450, f"{source.name_of(path)} has {lines} lines: split it by concept"


def test_a_folder_holds_at_most_15_files():
    folders = collections.Counter(path.parent for path in FILES if path.name != "__init__.py")
    assert {source.name_of(folder): count for folder, count in folders.items() if count > 15} == {}
