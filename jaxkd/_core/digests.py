"""SHA-256 digests of the files of a folder, of arrays, inputs and functions.

The files of a folder are listed in it, to detect damage. The list has the format of ``sha256sum``, so
``cd FOLDER && sha256sum -c SHA256SUMS`` detects damage as well.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import hashlib
import os
import pathlib
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jaxkd._core import files, multihost, tree_paths

NAME = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  (.+)")
_ATTEMPTS = 50
_THREADS = 8  # hashlib releases the GIL, and a large checkpoint has many files

PYTHON = f"Python {sys.version_info[0]}.{sys.version_info[1]}"
"""Interpreter whose fingerprints are comparable: each compiles functions to instructions of its own."""

_LIBRARIES = {"jax", "jaxlib", "jaxkd", "numpy", *sys.stdlib_module_names}
_CONSTANTS = (int, float, complex, str, bytes, tuple, frozenset, np.ndarray, np.generic, jax.Array, functools.partial)


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


class FolderRemoved(Exception):
    """Another process removed a folder that was being verified."""


def expect_present(folder: pathlib.Path) -> None:
    """Raises `FolderRemoved` if a folder, which is then not damaged, is missing."""
    if not folder.is_dir():
        raise FolderRemoved(folder)


def read_whole(choose: Callable[[], pathlib.Path], read: Callable[[pathlib.Path], Any]) -> Any:
    """Reads from a folder, and from another one if a process removes it meanwhile.

    A run removes old checkpoints while others read them. What was read from a folder is returned only if the folder
    still stands where it was, since it may otherwise have been read when half of it was gone.

    Args:
      choose: returns a verified folder, or raises `FolderRemoved`.
      read: function of the folder.

    Raises:
      TimeoutError: each of many folders was removed while it was read.

    >>> import tempfile
    >>> read_whole(lambda: pathlib.Path(tempfile.mkdtemp()), lambda folder: sorted(folder.iterdir()))
    []
    """
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(FolderRemoved):
            folder = choose()
            before = _number(folder)
            try:
                with files.quiet_loops():
                    found = read(folder)
            except Exception:
                if before is not None and _number(folder) == before:
                    raise
                continue
            if before is not None and _number(folder) == before:
                return found
    raise TimeoutError(f"each of {_ATTEMPTS} checkpoints was removed while it was read. Read again when the run ends.")


def _number(folder: pathlib.Path) -> int | None:
    try:
        return folder.stat().st_ino
    except OSError:
        return None


def of_array(array: Any) -> str:
    """Returns a digest of an array's dtype, shape and values, 16 hexadecimal digits.

    >>> of_array(np.zeros(3)) == of_array(np.zeros(3)), of_array(np.zeros(3)) == of_array(np.zeros((3, 1)))
    (True, False)
    """
    array = multihost.local(array)
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    values = np.ascontiguousarray(array)
    sha256 = hashlib.sha256(f"{values.dtype} {np.shape(array)}\n".encode())
    sha256.update(values.reshape(-1).view(np.uint8).data)
    return sha256.hexdigest()[:16]


def of_input(data: Any) -> dict[str, Any]:
    """Returns the entries by which a run recognizes the data of an input.

    They are those of its ``fingerprint()``. Of an input without one, they are digests: of all arrays if it is resident,
    and otherwise of the first batch, which is read from a new iterator.

    >>> class Bare:
    ...     def batches(self, state=None):
    ...         return iter([{"x": np.zeros(3)}])
    >>> of_input(Bare()) == {"first_batch": {"x": of_array(np.zeros(3))}}
    True
    """
    if hasattr(data, "fingerprint"):
        return dict(data.fingerprint())
    if hasattr(data, "arrays") and hasattr(data, "gather"):
        return {"arrays": {name: of_array(x) for name, x in tree_paths.named(data.arrays).items()}}
    batches = data.batches()
    try:
        first = tree_paths.named(next(iter(batches), None) if isinstance(batches, Iterable) else None)
        return {"first_batch": {name: of_array(np.asarray(x) if np.isscalar(x) else x) for name, x in first.items()}}
    finally:
        getattr(batches, "close", lambda: None)()


def _files(folder: pathlib.Path) -> set[str]:
    """Returns the files of a folder.

    The list itself is left out, and so are hidden files, which network file systems leave behind. Parts that another
    process removes meanwhile are left out too.
    """
    return {
        pathlib.Path(parent, name).relative_to(folder).as_posix()
        for parent, _, names in os.walk(folder)
        for name in names
        if name != NAME and not name.startswith(".")
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


def of_function(function: Any) -> str:
    """Returns the name of a function or callable object and a digest of what it runs.

    The digest covers its instructions, defaults, closure, the attributes of an object, and the functions and constants
    of the same module that it uses. Of functions and objects of JAX, NumPy and jaxkd, it covers the name instead of the
    instructions and attributes.

    >>> def scaled(factor):
    ...     return lambda example: example * factor
    >>> of_function(scaled(2)) == of_function(scaled(2)), of_function(scaled(2)) == of_function(scaled(3))
    (True, False)
    """
    digest = hashlib.sha256(_text(function, set()).encode()).hexdigest()[:16]
    named = function.func if isinstance(function, functools.partial) else function
    return f"{getattr(named, '__qualname__', type(named).__qualname__)}#{digest}"


def _text(value: Any, seen: set[int]) -> str:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return of_array(value)
    if id(value) in seen:
        return "seen"
    seen.add(id(value))
    if isinstance(value, tuple | list):
        return f"({','.join(_text(item, seen) for item in value)})"
    if isinstance(value, set | frozenset):
        return f"{{{','.join(sorted(_text(item, seen) for item in value))}}}"
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{_text(k, seen)}:{_text(v, seen)}' for k, v in value.items())}}}"
    if isinstance(value, types.CodeType):
        return f"{value.co_code.hex()} {value.co_names} {_text(value.co_consts, seen)}"
    if isinstance(value, types.FunctionType):
        return _function(value, seen)
    if isinstance(value, types.MethodType):
        return f"{_text(value.__func__, seen)} of {_text(value.__self__, seen)}"
    if isinstance(value, functools.partial):
        return f"partial {_text((value.func, value.args, value.keywords), seen)}"
    if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value.__name__)}"
    kind = type(value)
    name, wrapped = f"{kind.__module__}.{kind.__qualname__}", getattr(value, "__wrapped__", None)
    slots = getattr(kind, "__slots__", ())
    slots = (slots,) if isinstance(slots, str) else slots
    own = dict(getattr(value, "__dict__", {})) or {key: getattr(value, key, None) for key in slots}
    if _is_library(kind):  # such as JAX's holder of a callback, of which the user's function is compared
        own = {key: item for key, item in own.items() if isinstance(item, types.FunctionType | functools.partial)}
    else:
        own = {**own, "()": kind.__dict__.get("__call__")}
    return f"{name} {_text((wrapped, own), seen)}"


def _is_library(value: Any) -> bool:
    """Returns whether a function or class is known by its name alone."""
    return str(value.__module__).partition(".")[0] in _LIBRARIES


def _function(function: types.FunctionType, seen: set[int]) -> str:
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    used = {name: function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__}
    own = {
        name: value
        for name, value in used.items()
        if isinstance(value, _CONSTANTS)
        or (isinstance(value, types.FunctionType) and value.__module__ == function.__module__)
    }
    parts: tuple[Any, ...] = (function.__defaults__, function.__kwdefaults__, cells)
    if not _is_library(function):
        parts += (function.__code__, own)
    return f"{function.__module__}.{function.__qualname__} {_text(parts, seen)}"


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
