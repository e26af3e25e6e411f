"""Names and layouts of the arrays of a Hugging Face model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxkd.weights.layouts import Layout


class HuggingFace(NamedTuple):
    """Names and layouts of a Hugging Face model, from its ``config.json``.

    ``fit_torch_to(template, file, names=form.names, layouts=form.layouts, ignore=form.ignore)`` fits its arrays to a
    model whose modules are named like those of `jaxkd.models`; `load_hf` does all of it.

    Attributes:
      config: fields of the configuration of the model in `jaxkd.models`: of ``DecoderConfig`` or ``EncoderConfig``.
      names: arrays of the file, under each name that they have in some file, to the arrays of the model that they
        fill. For each array of the model, the first name is the one that `save_hf` writes.
      layouts: functions from the layout of an array in the file to that in the model, as `fit_torch_to` takes them.
      ignore: regular expressions of the arrays of the file that the model does not need.
      copies: arrays of the file that repeat another one, such as a tied head, to the array of the model that both
        fill. They are part of ``ignore``; `load_hf` raises if they differ.
      shapes: the arrays of the model with their shapes.
    """

    config: dict[str, Any]
    names: dict[str, tuple[str, ...]]
    layouts: dict[str, Layout]
    ignore: tuple[str, ...]
    copies: dict[str, str]
    shapes: dict[str, tuple[int, ...]]


class Row(NamedTuple):
    """One array of a file: its name, its places in the model, and their shape there.

    ``head`` marks arrays that lie beside the base model, whose names have no prefix.
    """

    name: str
    places: tuple[str, ...]
    shape: tuple[int, ...]
    head: bool = False


def dense(name: str, place: str, inputs: int, outputs: int, *, bias: bool = True, head: bool = False) -> list[Row]:
    """Returns the rows of a linear layer.

    >>> [row.shape for row in dense("fc", "mlp/up", 2, 3)]
    [(2, 3), (3,)]
    """
    rows = [Row(f"{name}.weight", (f"{place}/kernel",), (inputs, outputs), head)]
    return rows + ([Row(f"{name}.bias", (f"{place}/bias",), (outputs,), head)] if bias else [])


def norm(name: str, place: str, width: int, *, bias: bool = True, head: bool = False) -> list[Row]:
    """Returns the rows of a LayerNorm, or of an RMSNorm without bias."""
    rows = [Row(f"{name}.weight", (f"{place}/scale",), (width,), head)]
    return rows + ([Row(f"{name}.bias", (f"{place}/bias",), (width,), head)] if bias else [])


def embed(name: str, place: str, count: int, width: int) -> Row:
    """Returns the row of an embedding table."""
    return Row(f"{name}.weight", (f"{place}/embedding",), (count, width))


def form(
    config: dict[str, Any],
    rows: Iterable[Row],
    *,
    prefix: str,
    written: bool,
    layouts: Mapping[str, Layout] | None = None,
    buffers: Sequence[str] = (),
    copies: Mapping[str, str] | None = None,
) -> HuggingFace:
    """Returns the form of a model out of its rows.

    Args:
      config: fields of the model's configuration.
      rows: its arrays.
      prefix: prefix of the base model in a model with a head; files have it or lack it.
      written: whether `save_hf` writes the prefix.
      layouts: as in `HuggingFace`.
      buffers: regular expressions of arrays that are no parameters, without the prefix.
      copies: as in `HuggingFace`.
    """
    names: dict[str, tuple[str, ...]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for row in rows:
        for start in ("",) if row.head else (prefix, "") if written else ("", prefix):
            names.setdefault(f"{start}{row.name}", row.places)
            # Checkpoints that were converted from TensorFlow keep its names of a LayerNorm's arrays.
            for torch, tensorflow in (("weight", "gamma"), ("bias", "beta")):
                if row.name.endswith(f"LayerNorm.{torch}"):
                    names.setdefault(f"{start}{row.name.removesuffix(torch)}{tensorflow}", row.places)
        shapes |= dict.fromkeys(row.places, row.shape)
    copies = dict(copies or {})
    ignore = [rf"({re.escape(prefix)})?{buffer}" for buffer in buffers] + [re.escape(name) for name in copies]
    return HuggingFace(config, names, dict(layouts or {}), tuple(ignore), copies, shapes)
