"""Weights as one safetensors file: arrays by flat names, and a header.

Names are paths in linen's layout, such as ``params/Dense_0/kernel`` and ``batch_stats/BatchNorm_0/mean``. Reading gives
a mapping of names to NumPy arrays; `jaxkd.weights.fit_to` fits it to a model.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxkd._core.files import replacing
from jaxkd.weights import _tree

Path = str | os.PathLike[str]

_DTYPES = {
    "BOOL": "bool",
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "C64": "complex64",
}


def save_safetensors(
    file: Path, source: Any, *, metadata: Mapping[str, str] | None = None, overwrite: bool = False
) -> None:
    """Writes weights as one ``.safetensors`` file.

    The file is written completely or not at all. With several processes, the first one writes.

    Args:
      file: path of the file.
      source: a `TrainState`, whose student is written, or weights in any form that an adapter accepts.
      metadata: names to strings, stored in the header beside ``format`` and ``producer``.
      overwrite: replace an existing file.

    Raises:
      FileExistsError: the file exists and ``overwrite`` is False.
      TypeError: a metadata value is not a string, or a leaf is not an array.
      ValueError: safetensors lacks the dtype of an array, or another host holds a part of it.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "student.safetensors"
    >>> save_safetensors(path, {"params": {"w": jnp.ones(2, jnp.bfloat16)}}, metadata={"accuracy": "0.75"})
    >>> load_safetensors(path), load_safetensors_metadata(path)["accuracy"]
    ({'params/w': array([1, 1], dtype=bfloat16)}, '0.75')
    """
    header = {"format": "flax", "producer": _tree.producer(), **(metadata or {})}
    for name, value in header.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"metadata: expected strings by name, got {name!r}: {value!r}. Use json.dumps.")
    arrays = {"/".join(file): array for file, array in _tree.on_host(source).items()}
    if jax.process_index():
        return
    write_arrays(file, arrays, header, overwrite=overwrite)


def write_arrays(
    file: Path, arrays: Mapping[str, np.ndarray], header: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """Writes C-contiguous arrays by name to one file, completely or not at all.

    Raises:
      FileExistsError: as `save_safetensors`.
      ValueError: safetensors lacks the dtype of an array.
    """
    with replacing(file, overwrite=overwrite) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # by default; the library makes files that only their owner can read
        try:
            safetensors.numpy.save_file(dict(arrays), temporary, metadata=dict(header))
            temporary.chmod(mode)
        except safetensors.SafetensorError as error:
            dtypes = sorted({str(array.dtype) for array in arrays.values()})
            raise ValueError(f"{file}: safetensors cannot store the arrays, of dtypes {dtypes}: {error}") from error


def load_safetensors(file: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of any ``.safetensors`` file by name.

    Their dtypes are those of the file, including bfloat16 and 8-bit floats. For a model in several files, give its
    index, ``model.safetensors.index.json``, which names the file of each array.

    Raises:
      FileNotFoundError: the file, or one that the index names, does not exist.
      ValueError: it is not a safetensors file or an index, or is damaged; or a file lacks an array of the index.
    """
    if pathlib.Path(file).suffix == ".json":
        return _load_indexed(pathlib.Path(file))
    arrays = {}
    try:
        for name, entry in safetensors.deserialize(pathlib.Path(file).read_bytes()):
            if entry["dtype"] not in _DTYPES:
                raise ValueError(f"{file}: {name} has the dtype {entry['dtype']}, which NumPy lacks.")
            dtype = jnp.dtype(_DTYPES[entry["dtype"]])
            arrays[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file}: expected a complete safetensors file: {error}.") from error
    return {name: arrays[name] for name in sorted(arrays)}


def _load_indexed(index: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the arrays of all files that an index names, which lie beside it."""
    try:
        file_of = {str(name): str(file) for name, file in json.loads(index.read_bytes())["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{index}: expected an index of safetensors files, {{'weight_map': {{name: file}}}}: {error!r}."
        ) from error
    arrays: dict[str, np.ndarray] = {}
    for file in sorted(set(file_of.values())):
        if pathlib.PurePath(file).name != file or not file.endswith(".safetensors"):
            raise ValueError(f"{index}: expected names of .safetensors files in its own directory, got {file!r}.")
        found, wanted = load_safetensors(index.parent / file), [name for name in file_of if file_of[name] == file]
        if absent := [name for name in wanted if name not in found]:
            raise ValueError(f"{index}: expected {', '.join(map(repr, absent))} in {file}, which lacks it.")
        arrays |= {name: found[name] for name in wanted}
    return {name: arrays[name] for name in sorted(arrays)}


def load_safetensors_metadata(file: Path) -> dict[str, str]:
    """Reads the metadata in the header of a ``.safetensors`` file.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it is not a safetensors file, or is damaged.
    """
    try:
        with safetensors.safe_open(os.fspath(file), framework="np") as opened:
            return dict(opened.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f"{file}: expected a complete safetensors file: {error}.") from error
