"""Quantised weights on disk: each code in as many bits as it has, and what the whole file takes, to the byte.

One safetensors file holds, of a quantised tensor ``params/Dense_0/kernel``,

===================================  ===================================================================================
``params/Dense_0/kernel/#codes``     uint8, the codes of its weights one after the other, the lowest bit first
``params/Dense_0/kernel/#offset``    float32 ``[buckets]``
``params/Dense_0/kernel/#step``      float32 ``[buckets]``: a weight is ``offset + code·step``; or with learned points
``params/Dense_0/kernel/#points``    float32 ``[points]``: a weight is ``offset + points[code]·step``
===================================  ===================================================================================

and everything else as it is. The header says the bucket size and each tensor's bits, dtype and shape.
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

from jaxkd.adapters.buckets import check, decode, encode, encode_to
from jaxkd.adapters.quantised import Include, by_path, chosen_tensors, quantise_to
from jaxkd.types import PyTree, Variables
from jaxkd.weights import tree
from jaxkd.weights.safetensors_file import Path, load_safetensors, load_safetensors_metadata, save_safetensors

__all__ = ["QuantisedSize", "load_quantised", "quantised_size", "save_quantised"]

_HEADER = "quantised"
_PARTS = ("#codes", "#offset", "#step", "#points")


class QuantisedSize(NamedTuple):
    """What a file of quantised weights takes, in bytes.

    Attributes:
      codes: the packed codes.
      scales: offsets, steps and points.
      rest: what is not quantised.
      header: names, shapes and metadata.
      values: the number of values in the model, quantised or not.
    """

    codes: int
    scales: int
    rest: int
    header: int
    values: int

    @property
    def total(self) -> int:
        """The size of the file."""
        return self.codes + self.scales + self.rest + self.header

    @property
    def ratio(self) -> float:
        """How many times as large the values alone would be in float32."""
        return 4 * self.values / self.total


def save_quantised(
    path: Path,
    source: Any,
    *,
    bits: int = 4,
    bucket: int | None = 256,
    include: Include = None,
    points: PyTree = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> QuantisedSize:
    """Writes the weights of `jaxkd.adapters.quantised`, or of `jaxkd.adapters.learned_points`, in packed bits.

    The file is there whole or not at all. With several processes, the first one writes, and it alone knows the size of
    the header.

    Args:
      path: of the file.
      source: a `TrainState`, of which the student is written, or weights in any form that an adapter knows: the
        full-precision ones, which the model quantises in its forward pass. With ``points``, the trained weights that
        `learned_points` was given, and the state they are to run with.
      bits: as the model's.
      bucket: as the model's.
      include: as the model's.
      points: what `learned_points` has learned, ``state.student.params``; they also say bits and tensors.
      metadata: names to strings, kept in the file's header.
      overwrite: whether a file may be there already.

    Returns:
      The `QuantisedSize` of the file.

    Raises:
      FileExistsError: it is there, and ``overwrite`` is False.
      TypeError: the source is of no known form.
      ValueError: as `jaxkd.adapters.quantise` or `jaxkd.adapters.quantise_to`; or a weight is not finite.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "student.safetensors"
    >>> weights = {"params": {"w": jnp.linspace(-1.0, 1.0, 4096).reshape(64, 64), "b": jnp.zeros(64)}}
    >>> size = save_quantised(path, weights, bits=4)
    >>> size.codes, size.scales, size.rest, size.total == path.stat().st_size
    (2048, 128, 256, True)
    """
    arrays = tree.on_host(source)
    names = {"/".join(path[1:]): path for path in arrays if path[0] == "params"}
    entries: dict[tuple[str, ...], Any] = dict(arrays)
    tensors: dict[str, Any] = {}
    for name, levels in _points_of(arrays, bits, bucket, include, points).items():
        at = names[name]
        weight = entries.pop(at)
        if not np.isfinite(weight.astype(np.float32)).all():
            raise ValueError(f"save_quantised, {name!r}: expected finite weights; some are not, and have no code.")
        if levels is None:
            codes, offset, step = encode(jnp.asarray(weight), bits, bucket)
        else:
            codes, offset, step = encode_to(jnp.asarray(weight), jnp.asarray(levels), bucket)
            entries[(*at, "#points")] = levels
        number = bits if levels is None else max(1, (len(levels) - 1).bit_length())
        entries[(*at, "#codes")] = _pack(np.asarray(codes).reshape(-1)[: weight.size].astype(np.uint8), number)
        entries[(*at, "#offset")], entries[(*at, "#step")] = (np.asarray(x)[:, 0] for x in (offset, step))
        tensors["/".join(at)] = [number, str(weight.dtype), list(weight.shape)]
    header = json.dumps({"bucket": bucket, "tensors": tensors}, separators=(",", ":"))
    save_safetensors(path, tree.nest(entries), metadata={**(metadata or {}), _HEADER: header}, overwrite=overwrite)
    if jax.process_index():
        return _size({"/".join(at): array for at, array in entries.items()}, tensors, 0)
    return quantised_size(path)


def load_quantised(path: Path) -> Variables:
    """The weights in a file of `save_quantised`, dense: those of the quantised model's forward pass, bit for bit.

    Args:
      path: of the file.

    Returns:
      `Variables` of nested dicts, with the dtypes that were saved, for the model itself, not the quantised one. Where
      its parameters are no dicts, ``fit_to(template, flatten(variables))`` has their structure.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a file of `save_quantised`, or is damaged.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "student.safetensors"
    >>> weights = {"w": jnp.array([[0.0, 0.2, 0.9, 1.0]]), "b": jnp.ones(1)}
    >>> _ = save_quantised(path, {"params": weights}, bits=1)
    >>> load_quantised(path).params
    {'b': Array([1.], dtype=float32), 'w': Array([[0., 0., 1., 1.]], dtype=float32)}
    """
    arrays, header = load_safetensors(path), _header(path)
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
        raise ValueError(f"{path}: header and arrays of quantised weights do not fit each other: {error!r}.") from error
    collections = tree.nest({at: leaves[at] for at in sorted(leaves)})
    return Variables(collections.pop("params", {}), collections)


def quantised_size(path: Path) -> QuantisedSize:
    """What a file of `save_quantised` takes, part by part; the parts add up to the size of the file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a file of `save_quantised`, or is damaged.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "student.safetensors"
    >>> saved = save_quantised(path, {"params": {"w": jnp.ones((512, 512))}}, bits=2)
    >>> quantised_size(path) == saved, round(saved.ratio, 1)
    (True, 14.1)
    """
    arrays, tensors = load_safetensors(path), _header(path)["tensors"]
    return _size(arrays, tensors, pathlib.Path(path).stat().st_size - sum(x.nbytes for x in arrays.values()))


def _points_of(
    arrays: Mapping[tuple[str, ...], np.ndarray], bits: int, bucket: int | None, include: Include, points: PyTree
) -> dict[str, np.ndarray | None]:
    """The tensors that are quantised, by their path in the parameters, with ascending points or None; all checked."""
    params = {"/".join(at[1:]): x for at, x in arrays.items() if at[0] == "params"}
    check("save_quantised", bits, bucket)
    if points is None:
        return dict.fromkeys(chosen_tensors("save_quantised", params, include))
    if include is not None:
        raise ValueError("save_quantised: points say which tensors are quantised; give include= or points=.")
    shapes = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in params.items()}
    named = {name: jnp.asarray(p, jnp.float32) for name, p in by_path(points).items()}
    jax.eval_shape(lambda params: quantise_to(params, named, bucket=bucket), shapes)
    return {name: np.sort(np.asarray(p)) for name, p in named.items()}


def _header(path: Path) -> Any:
    metadata = load_safetensors_metadata(path)
    try:
        header = json.loads(metadata[_HEADER])
        return {"bucket": header["bucket"], "tensors": dict(header["tensors"])}
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path}: expected a file of save_quantised, and its header is not one. load_safetensors reads any other."
        ) from error


def _size(arrays: Mapping[str, np.ndarray], tensors: Mapping[str, Any], header: int) -> QuantisedSize:
    bytes_of = {name: x.nbytes for name, x in arrays.items()}
    codes = sum(size for name, size in bytes_of.items() if name.endswith("/#codes"))
    scales = sum(size for name, size in bytes_of.items() if name.endswith(_PARTS)) - codes
    rest = sum(size for name, size in bytes_of.items() if not name.endswith(_PARTS))
    values = sum(x.size for name, x in arrays.items() if not name.endswith(_PARTS))
    values += sum(math.prod(shape) for _, _, shape in tensors.values())
    return QuantisedSize(codes, scales, rest, header, values)


def _pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes of so many bits, one after the other.

    >>> _pack(np.array([1, 2, 7], np.uint8), 3).tolist()  # 111 010 001, and the rest of the second byte
    [209, 1]
    """
    return np.packbits(np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little"), bitorder="little")


def _unpack(packed: np.ndarray, bits: int, size: int) -> np.ndarray:
    """`_pack` undone.

    >>> _unpack(np.array([209, 1], np.uint8), 3, 3).tolist()
    [1, 2, 7]
    """
    if packed.dtype != np.uint8 or packed.size != -(-size * bits // 8):
        raise ValueError(f"expected {-(-size * bits // 8)} bytes for {size} codes of {bits} bits, got {packed.size}")
    each = np.unpackbits(packed, count=size * bits, bitorder="little").reshape(size, bits)
    return np.packbits(each, axis=1, bitorder="little")[:, 0]
