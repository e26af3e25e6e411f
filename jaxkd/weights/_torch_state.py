"""Reads PyTorch state dicts and fits them to Flax models, in Flax's layouts."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd._core import checks
from jaxkd.types import PyTree
from jaxkd.weights import _fitting, _tree
from jaxkd.weights import layouts as layouts_lib
from jaxkd.weights import names as names_lib
from jaxkd.weights._safetensors_file import load_safetensors

NUM_BATCHES_TRACKED = r"(.*\.)?num_batches_tracked"
"""Pattern of the counters in PyTorch's BatchNorm, which Flax lacks: an ``ignore=`` for `fit_torch_to`."""

_LEAVES = {"weight": ("kernel", "scale", "embedding"), "running_mean": ("mean",), "running_var": ("var",)}


def fit_torch_to(
    template: Any,
    source: Any,
    *,
    names: names_lib.Names = None,
    layouts: Mapping[str, layouts_lib.Layout] | None = None,
    ignore: str | Sequence[str] = (),
    missing: str | Sequence[str] = (),
    extra: str | Sequence[str] = (),
) -> PyTree:
    r"""Returns PyTorch weights in the structure of a Flax model, after checking them.

    A name map relates the modules. In a module, ``weight`` becomes ``kernel``, ``scale`` or ``embedding``, whichever
    the Flax module has; ``running_mean`` and ``running_var`` become ``mean`` and ``var`` of the state. A ``kernel`` is
    transposed by `layouts.usual`. Shapes are checked, but shapes do not show whether a square kernel is transposed,
    whether a map was flattened in the same order, or whether both models normalize with the same epsilon: compare the
    logits of both models once.

    Args:
      template: as in `fit_to`.
      source: a state dict, as `load_torch` takes it.
      names: map from PyTorch's names to the model's, with dots or slashes; see `jaxkd.weights.names`.
      layouts: for arrays that `layouts.usual` does not convert: regular expressions of whole names in the model, with
        or without the collection, to functions such as those in `jaxkd.weights.layouts`. The first match is used.
      ignore: regular expressions of whole PyTorch names that are not read, such as `NUM_BATCHES_TRACKED`.
      missing: as in `fit_to`.
      extra: as in `fit_to`, with PyTorch's names.

    Raises:
      WeightsError: an array is missing, unused or does not fit.
      ValueError: an entry of ``layouts`` matches no array of the model, or the source cannot be read.

    >>> import jax, flax.linen as nn
    >>> template = jax.eval_shape(nn.Dense(2).init, jax.random.key(0), jnp.ones((1, 3)))
    >>> state_dict = {"fc.weight": np.ones((2, 3)), "fc.bias": np.zeros(2)}
    >>> jax.tree.map(jnp.shape, fit_torch_to(template, state_dict, names=[(r"^fc\.", "")]))
    {'params': {'bias': (2,), 'kernel': (3, 2)}}
    """
    return _fitting.fill(
        template,
        load_torch(source),
        names_lib.renamer(names),
        spellings=_spellings,
        convert=_converter(template, layouts or {}),
        ignore=ignore,
        missing=missing,
        extra=extra,
        advise=_advice,
    )


def load_torch(source: Any, *, state_dict_key: str | None = None) -> dict[str, np.ndarray]:
    """Reads a PyTorch state dict as NumPy arrays.

    Args:
      source: a mapping of names to tensors or arrays; or the path of a ``.safetensors`` file or index, or of a file
        that ``torch.load(weights_only=True)`` reads, which requires PyTorch.
      state_dict_key: key of the state dict in a file that holds more, such as ``"model"`` or ``"state_dict"``.

    Returns:
      PyTorch's names to arrays; bfloat16 stays bfloat16.

    Raises:
      FileNotFoundError: the file does not exist.
      ImportError: the file needs PyTorch, which is not installed.
      TypeError: an entry is not a tensor; the message suggests a key.
      ValueError: the file cannot be read, or lacks the key.

    >>> load_torch({"fc.bias": np.zeros(2)})
    {'fc.bias': array([0., 0.])}
    """
    if isinstance(source, str | os.PathLike):
        path = pathlib.Path(source)
        if path.suffix in (".safetensors", ".json"):
            return load_safetensors(path)
        source = _unpickled(path)
    if state_dict_key is not None:
        if not isinstance(source, Mapping):
            raise TypeError(
                f"key={state_dict_key!r}: expected a mapping around the state dict, got {type(source).__name__}."
            )
        checks.known(state_dict_key, source, "state_dict_key")
        source = source[state_dict_key]
    if not isinstance(source, Mapping):
        hint = " Pass its state_dict()." if hasattr(source, "state_dict") else ""
        raise TypeError(f"expected a state dict, names to tensors, or a path, got {type(source).__name__}.{hint}")
    return {str(name): _array(name, value, source) for name, value in source.items()}


def _array(name: Any, value: Any, source: Mapping[Any, Any]) -> np.ndarray:
    if not hasattr(value, "dtype"):
        inner = [key for key, entry in source.items() if isinstance(entry, Mapping)]
        hint = f" The state dict may have one of the keys {inner}: load_torch(..., key={inner[0]!r})." if inner else ""
        raise TypeError(f"{name!r}: expected a tensor, got {type(value).__name__}.{hint}")
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu()
    try:
        return np.asarray(tensor.numpy())
    except TypeError:  # NumPy has no bfloat16 and no 8-bit floats; float32 holds all their values
        dtype = jnp.dtype(str(tensor.dtype).removeprefix("torch."))
        return np.asarray(tensor.float().numpy()).astype(dtype)


def _unpickled(path: pathlib.Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file, found none.")
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError(
            f"{path}: this format is a pickle, which only PyTorch reads, and PyTorch is not installed. Install it, or "
            "convert the file elsewhere: safetensors.torch.save_file(torch.load(path, weights_only=True), "
            "'teacher.safetensors')."
        ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and PyTorch raise different errors
        raise ValueError(
            f"{path}: torch.load(weights_only=True) failed: {error} If you trust the file, load it yourself and pass "
            "its state dict."
        ) from error


def _spellings(name: str) -> Iterable[str]:
    """Yields the names that a PyTorch array may have in a Flax module of this name."""
    yield name
    name = name.replace(".", "/")
    yield name
    module, slash, leaf = name.rpartition("/")
    for other in _LEAVES.get(leaf, ()):
        yield module + slash + other


def _converter(template: Any, special: Mapping[str, layouts_lib.Layout]) -> Any:
    matchers = [(names_lib.matcher(pattern, "layouts"), layout) for pattern, layout in special.items()]
    places = _tree.flatten(template) if special else {}
    for pattern, (matches, _) in zip(special, matchers, strict=True):
        if not any(matches(name) or matches(name.partition("/")[2]) for name in places):
            raise ValueError(f"layouts: {pattern!r} matches no array of the model. It has {', '.join(places)}.")

    def convert(name: str, array: Any) -> Any:
        for matches, layout in matchers:
            if matches(name) or matches(name.partition("/")[2]):
                return layout(array)
        return layouts_lib.usual(name, array)

    return convert


def _advice(unused: Sequence[str]) -> str:
    advice = ""
    if any(re.fullmatch(NUM_BATCHES_TRACKED, name) for name in unused):
        advice += " Flax's BatchNorm has no num_batches_tracked: pass ignore=weights.NUM_BATCHES_TRACKED."
    if unused and all(name.startswith("module.") for name in unused):
        advice += r" DataParallel adds the prefix: pass names=[(r'^module\.', ''), ...]."
    return advice
