"""Weights as one safetensors file: flat names, a header that says what they are, and no code in it.

Names are paths in linen's layout, such as ``params/Dense_0/kernel`` and ``batch_stats/BatchNorm_0/mean``. What is read
is a mapping of names to NumPy arrays; `jaxkd.weights.fit_to` puts it into a model.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from jaxkd.weights import tree
from jaxkd.weights.replacing import replacing

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
    path: Path, source: Any, *, metadata: Mapping[str, str] | None = None, overwrite: bool = False
) -> None:
    """Writes weights as one ``.safetensors`` file, with names such as ``params/Dense_0/kernel``.

    The file is there whole or not at all. With several processes, the first one writes.

    Args:
      path: of the file.
      source: a `TrainState`, of which the student is written, or weights in any form that an adapter knows.
      metadata: names to strings, kept in the file's header beside ``format`` and ``producer``.
      overwrite: whether a file may be there already.

    Raises:
      FileExistsError: it is there, and ``overwrite`` is False.
      TypeError: the metadata is not of strings, or a leaf is not an array.
      ValueError: an array has a dtype that safetensors does not know, or lies in part on other hosts.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "student.safetensors"
    >>> save_safetensors(path, {"params": {"w": jnp.ones(2, jnp.bfloat16)}}, metadata={"accuracy": "0.75"})
    >>> load_safetensors(path), load_safetensors_metadata(path)["accuracy"]
    ({'params/w': array([1, 1], dtype=bfloat16)}, '0.75')
    """
    header = {"format": "flax", "producer": tree.producer(), **(metadata or {})}
    for name, value in header.items():
        if not (isinstance(name, str) and isinstance(value, str)):
            raise TypeError(f"metadata: safetensors keeps strings by name, got {name!r}: {value!r}. Use json.dumps.")
    arrays = {"/".join(path): array for path, array in tree.on_host(source).items()}
    if jax.process_index():
        return
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # the library makes files that their owner alone can read
        try:
            safetensors.numpy.save_file(arrays, temporary, metadata=header)
            temporary.chmod(mode)
        except safetensors.SafetensorError as error:
            found = sorted({str(array.dtype) for array in arrays.values()})
            raise ValueError(f"{path}: safetensors did not take the arrays, of dtypes {found}: {error}") from error


def load_safetensors(path: Path) -> dict[str, np.ndarray]:
    """The arrays in a ``.safetensors`` file, of whatever origin.

    Args:
      path: of the file. Several that hold one model: ``{**load_safetensors(a), **load_safetensors(b)}``.

    Returns:
      Names to arrays, with their dtypes, bfloat16 and 8-bit floats among them.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no such file, or is damaged.
    """
    arrays = {}
    try:
        for name, found in safetensors.deserialize(pathlib.Path(path).read_bytes()):
            if found["dtype"] not in _DTYPES:
                raise ValueError(f"{path}: {name} is of dtype {found['dtype']}, which NumPy has not.")
            dtype = jnp.dtype(_DTYPES[found["dtype"]])
            arrays[name] = np.frombuffer(found["data"], dtype).reshape(found["shape"])
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file: {error}.") from error
    return {name: arrays[name] for name in sorted(arrays)}


def load_safetensors_metadata(path: Path) -> dict[str, str]:
    """The strings in the header of a ``.safetensors`` file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no such file, or is damaged.
    """
    try:
        with safetensors.safe_open(os.fspath(path), framework="np") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path}: expected a whole safetensors file: {error}.") from error
