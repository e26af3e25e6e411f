"""SHA-256 digests of the files of a folder, kept there to detect damage.

The list has the format of ``sha256sum``, so ``cd FOLDER && sha256sum -c SHA256SUMS`` detects damage as well.
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import re
from collections.abc import Iterable

from jaxkd._core import files

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_THREADS = 8  # hashlib releases the GIL, and a large checkpoint has many files


def write_digests(folder: str | os.PathLike[str]) -> None:
    """Writes the digests of all files of a complete folder. Each file is read once.

    >>> import tempfile
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> _ = (folder / "a").write_text("hello"), (folder / "b").write_text("there")
    >>> write_digests(folder)
    >>> find_damage(folder)
    []
    >>> _ = (folder / "a").write_text("hullo"), (folder / "b").unlink()
    >>> find_damage(folder)
    ['a does not hold the bytes that were written', 'b is missing']
    """
    folder = pathlib.Path(folder)
    digests = _digests(folder, _files(folder))
    with (folder / NAME).open("w", encoding="utf-8") as file:
        file.writelines(f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
        file.flush()
        os.fsync(file.fileno())


def find_damage(folder: str | os.PathLike[str]) -> list[str]:
    """Compares the files of a folder with their digests. Each file is read once.

    The result has one line for each file that is missing, changed or not in the list of `write_digests`.
    """
    folder = pathlib.Path(folder)
    try:
        content = (folder / NAME).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return [f"{NAME}, the list of its files, cannot be read ({error.strerror})"]
    matches = [_LINE.fullmatch(line) for line in content.splitlines()]
    expected = {match[2]: match[1] for match in matches if match}
    problems = [f"{NAME}, the list of its files, is damaged"] if not (all(matches) and content.endswith("\n")) else []
    existing = _files(folder)
    found = _digests(folder, expected.keys() & existing)
    for name in sorted(expected.keys() | existing):
        if name not in existing:
            problems.append(f"{name} is missing")
        elif name not in expected:
            problems.append(f"{name} is not in {NAME}")
        elif found[name] != expected[name]:
            what = found[name] if " " in found[name] else "does not hold the bytes that were written"
            problems.append(f"{name} {what}")
    return problems


def _files(folder: pathlib.Path) -> set[str]:
    """Returns the files of a folder.

    The list itself is left out, and so are hidden files, which network file systems leave behind.
    """
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.name != NAME and not path.name.startswith(".") and not path.is_dir()
    }


def _digests(folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        return dict(zip(names, pool.map(lambda name: _digest(folder / name), names), strict=True))


def _digest(path: pathlib.Path) -> str:
    try:
        return files.digest(path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
