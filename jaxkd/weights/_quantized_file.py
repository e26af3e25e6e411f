"""Quantized weights on disk, as packed codes in a safetensors file.

For a quantized tensor ``params/Dense_0/kernel`` the file holds

===================================  ===================================================================================
``params/Dense_0/kernel/#codes``     uint8, the packed codes of its weights, lowest bit first
``params/Dense_0/kernel/#offset``    float32 ``[buckets]``
``params/Dense_0/kernel/#step``      float32 ``[buckets]``: a weight is ``offset + code·step``; or with learned points
``params/Dense_0/kernel/#points``    float32 ``[points]``: a weight is ``offset + points[code]·step``
===================================  ===================================================================================

and all other arrays unmodified. The header has the bucket size and each tensor's bits, dtype and shape.
"""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import tree_paths
from jaxkd._core.arrays.casts import cast
from jaxkd._core.quantization import Include, check, chosen_tensors, decode, encode, encode_to
from jaxkd._core.tree_paths import by_path
from jaxkd.types import PyTree, Variables
from jaxkd.weights import _tree
from jaxkd.weights._safetensors_file import Path, load_safetensors, load_safetensors_metadata, save_safetensors
from jaxkd.wrappers import quantize_with

_HEADER = "quantized"
_PARTS = ("#codes", "#offset", "#step", "#points")


class QuantizedSize(NamedTuple):
    """Size of a file of quantized weights, by parts, in bytes.

    Attributes:
      codes: size of the packed codes.
      scales: size of offsets, steps and points.
      rest: size of the arrays that are not quantized.
      header: size of names, shapes and metadata.
      values: number of values in the model, quantized or not.
    """

    codes: int
    scales: int
    rest: int
    header: int
    values: int

    @property
    def total(self) -> int:
        """Size of the file."""
        return self.codes + self.scales + self.rest + self.header

    @property
    def ratio(self) -> float:
        """Size of the values in float32, divided by the size of the file."""
        return 4 * self.values / self.total


def save_quantized(
    file: Path,
    source: Any,
    *,
    bits: int = 4,
    bucket: int | None = 256,
    include: Include = None,
    codebook: PyTree = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> QuantizedSize:
    """Writes weights as packed codes of 1 to 8 bits.

    They are the weights of `jaxkd.wrappers.quantized` or of `jaxkd.wrappers.learned_codebook`. The file is written
    completely or not at all. With several processes, the first one writes; the others return a header size of 0.

    Args:
      file: path of the file.
      source: a `TrainState`, whose student is written, or weights in any form that an adapter accepts: the
        full-precision weights, which the model quantizes in its forward pass. With ``codebook``, the trained weights
        that `learned_codebook` was given, with the state to store.
      bits: bits of the model's weights; like the next two, as in `jaxkd.wrappers.quantized`.
      bucket: number of weights with a scale of their own.
      include: selection of the tensors.
      codebook: points from `learned_codebook`, ``state.student.params``, which determine bits and tensors.
      metadata: names to strings, stored in the header.
      overwrite: replace an existing file.

    Raises:
      FileExistsError: the file exists and ``overwrite`` is False.
      TypeError: the source has an unknown form.
      ValueError: as `jaxkd.wrappers.quantize` or `jaxkd.wrappers.quantize_with`; or a weight is not finite.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "student.safetensors"
    >>> weights = {"params": {"w": jnp.linspace(-1.0, 1.0, 4096).reshape(64, 64), "b": jnp.zeros(64)}}
    >>> size = save_quantized(path, weights, bits=4)
    >>> size.codes, size.scales, size.rest, size.total == path.stat().st_size
    (2048, 128, 256, True)
    """
    arrays = _tree.on_host(source)
    names = {"/".join(file[1:]): file for file in arrays if file[0] == "params"}
    entries: dict[tuple[str, ...], Any] = dict(arrays)
    tensors: dict[str, Any] = {}
    for name, levels in _points_of(arrays, bits, bucket, include, codebook).items():
        at = names[name]
        weight = entries.pop(at)
        if not np.isfinite(weight).all():
            raise ValueError(
                f"save_quantized, {name!r}: expected finite weights, got some that are not. They have no code."
            )
        if levels is None:
            codes, offset, step = encode(jnp.asarray(cast(weight)), bits, bucket)
        else:
            codes, offset, step = encode_to(jnp.asarray(cast(weight)), jnp.asarray(levels), bucket)
            entries[(*at, "#points")] = levels
        number = bits if levels is None else max(1, (len(levels) - 1).bit_length())
        entries[(*at, "#codes")] = _pack(np.asarray(codes).reshape(-1)[: weight.size].astype(np.uint8), number)
        entries[(*at, "#offset")], entries[(*at, "#step")] = (np.asarray(x)[:, 0] for x in (offset, step))
        tensors["/".join(at)] = [number, str(weight.dtype), list(weight.shape)]
    header = json.dumps({"bucket": bucket, "tensors": tensors}, separators=(",", ":"))
    save_safetensors(
        file, tree_paths.nest(entries), metadata={**(metadata or {}), _HEADER: header}, overwrite=overwrite
    )
    if jax.process_index():
        return _size({"/".join(at): array for at, array in entries.items()}, tensors, 0)
    return quantized_size(file)


def load_quantized(file: Path) -> Variables:
    """Reads the dense weights of a file that `save_quantized` wrote.

    They equal the weights in the quantized model's forward pass, bit for bit, and are nested dicts in their original
    dtypes, for the model itself rather than the quantized one. For a model whose parameters are not dicts,
    ``fit_to(template, flatten(variables))`` restores the structure.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: `save_quantized` did not write it, or it is damaged.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "student.safetensors"
    >>> weights = {"w": jnp.array([[0.0, 0.2, 0.9, 1.0]]), "b": jnp.ones(1)}
    >>> _ = save_quantized(path, {"params": weights}, bits=1)
    >>> load_quantized(path).params
    {'b': Array([1.], dtype=float32), 'w': Array([[0., 0., 1., 1.]], dtype=float32)}
    """
    arrays, header = load_safetensors(file), _header(file)
    leaves = {tuple(name.split("/")): jnp.array(x) for name, x in arrays.items() if not name.endswith(_PARTS)}
    try:
        for name, (bits, dtype, shape) in header["tensors"].items():
            like = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
            offset, step = (jnp.array(arrays[f"{name}/{part}"])[:, None] for part in ("#offset", "#step"))
            size = min(header["bucket"] or like.size, like.size)
            codes = _unpack(arrays[f"{name}/#codes"], bits, like.size)
            codes = np.pad(codes, (0, -like.size % size), mode="edge").reshape(-1, size)
            levels = arrays[f"{name}/#points"][codes] if f"{name}/#points" in arrays else codes.astype(np.float32)
            leaves[tuple(name.split("/"))] = decode(jnp.array(levels), offset, step, like)
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise ValueError(f"{file}: the header of quantized weights does not match the arrays: {error!r}.") from error
    collections = tree_paths.nest({at: leaves[at] for at in sorted(leaves)})
    return Variables(collections.pop("params", {}), collections)


def quantized_size(file: Path) -> QuantizedSize:
    """Returns the size of a file that `save_quantized` wrote, by parts.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: `save_quantized` did not write it, or it is damaged.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "student.safetensors"
    >>> saved = save_quantized(path, {"params": {"w": jnp.ones((512, 512))}}, bits=2)
    >>> quantized_size(path) == saved, round(saved.ratio, 1)
    (True, 14.1)
    """
    arrays, tensors = load_safetensors(file), _header(file)["tensors"]
    return _size(arrays, tensors, pathlib.Path(file).stat().st_size - sum(x.nbytes for x in arrays.values()))


def _points_of(
    arrays: Mapping[tuple[str, ...], np.ndarray], bits: int, bucket: int | None, include: Include, points: PyTree
) -> dict[str, np.ndarray | None]:
    """Returns the quantized tensors by path, with their ascending points or None."""
    params = {"/".join(at[1:]): x for at, x in arrays.items() if at[0] == "params"}
    check("save_quantized", bits, bucket)
    if points is None:
        return dict.fromkeys(chosen_tensors("save_quantized", params, include))
    if include is not None:
        raise ValueError("save_quantized: expected include= or codebook=, got both: a codebook selects the tensors.")
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in params.items()}
    named = {name: jnp.asarray(p, jnp.float32) for name, p in by_path(points).items()}
    jax.eval_shape(lambda params: quantize_with(params, named, bucket=bucket), shapes)
    return {name: np.sort(np.asarray(p)) for name, p in named.items()}


def _header(path: Path) -> Any:
    metadata = load_safetensors_metadata(path)
    try:
        header = json.loads(metadata[_HEADER])
        return {"bucket": header["bucket"], "tensors": dict(header["tensors"])}
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: expected a file that save_quantized wrote, got another header. load_safetensors reads any file."
        ) from error


def _size(arrays: Mapping[str, np.ndarray], tensors: Mapping[str, Any], header: int) -> QuantizedSize:
    bytes_of = {name: x.nbytes for name, x in arrays.items()}
    codes = sum(size for name, size in bytes_of.items() if name.endswith("/#codes"))
    scales = sum(size for name, size in bytes_of.items() if name.endswith(_PARTS)) - codes
    rest = sum(size for name, size in bytes_of.items() if not name.endswith(_PARTS))
    values = sum(x.size for name, x in arrays.items() if not name.endswith(_PARTS))
    values += sum(math.prod(shape) for _, _, shape in tensors.values())
    return QuantizedSize(codes, scales, rest, header, values)


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Packs codes of ``bits`` bits without gaps, lowest bit first.

    >>> _pack(np.array([1, 2, 7], np.uint8), 3).tolist()  # 11 010 001, then the remaining 1 in the second byte
    [209, 1]
    """
    return np.packbits(np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little"), bitorder="little")


def _unpack(packed: np.ndarray, bits: int, size: int) -> np.ndarray:
    """Inverts `_pack`.

    >>> _unpack(np.array([209, 1], np.uint8), 3, 3).tolist()
    [1, 2, 7]
    """
    if packed.dtype != np.uint8 or packed.size != -(-size * bits // 8):
        raise ValueError(f"expected {-(-size * bits // 8)} bytes for {size} codes of {bits} bits, got {packed.size}")
    each = np.unpackbits(packed, count=size * bits, bitorder="little").reshape(size, bits)
    return np.packbits(each, axis=1, bitorder="little")[:, 0]
