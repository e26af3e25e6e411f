"""PyTorch state dicts in: read without PyTorch where the format allows it, laid out as Flax does, and checked."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd import checks
from jaxkd.types import PyTree
from jaxkd.weights import fitting, tree
from jaxkd.weights import layouts as layouts_lib
from jaxkd.weights import names as names_lib
from jaxkd.weights.safetensors_file import load_safetensors

NUM_BATCHES_TRACKED = r"(.*\.)?num_batches_tracked"
"""What PyTorch's BatchNorm counts and Flax's does not: ``fit_torch_to(..., ignore=weights.NUM_BATCHES_TRACKED)``."""

_LEAVES = {"weight": ("kernel", "scale", "embedding"), "running_mean": ("mean",), "running_var": ("var",)}


def fit_torch_to(
    template: Any,
    source: Any,
    *,
    names: names_lib.Names = None,
    layouts: Mapping[str, layouts_lib.Layout] | None = None,
    ignore: str | Sequence[str] = (),
) -> PyTree:
    r"""The weights of a PyTorch model in the structure of a Flax model, checked as by `fit_to`.

    A name map says which module is which. Of a module, ``weight`` is what the model has of ``kernel``, ``scale`` and
    ``embedding``; ``running_mean`` and ``running_var`` are ``mean`` and ``var``, wherever the state keeps them. A
    ``kernel`` is laid out by `layouts.usual`. That every shape fits is checked; that a square kernel is the right way
    round, that a map was flattened in the same order, or that both models normalise with the same epsilon cannot be:
    compare the logits once.

    Args:
      template: as in `fit_to`.
      source: a state dict, as `load_torch` takes it.
      names: from PyTorch's names to the model's, dots or slashes between the parts; see `jaxkd.weights.names`.
      layouts: for arrays that are not laid out as usual: regular expressions for the whole of a name in the model, with
        or without its collection, to functions such as those in `jaxkd.weights.layouts`. The first match counts.
      ignore: regular expressions for PyTorch's names; `NUM_BATCHES_TRACKED` is one.

    Returns:
      The weights, as from `fit_to`.

    Raises:
      WeightsError: something is missing, unused or does not fit.
      ValueError: an entry of ``layouts`` is for no array of the model; the source cannot be read.

    >>> import jax, flax.linen as nn
    >>> template = jax.eval_shape(nn.Dense(2).init, jax.random.key(0), jnp.ones((1, 3)))
    >>> state_dict = {"fc.weight": np.ones((2, 3)), "fc.bias": np.zeros(2)}
    >>> jax.tree.map(jnp.shape, fit_torch_to(template, state_dict, names=[(r"^fc\.", "")]))
    {'params': {'bias': (2,), 'kernel': (3, 2)}}
    """
    convert = _converter(template, layouts or {})
    return fitting.fill(
        template,
        load_torch(source),
        names_lib.renamer(names),
        spellings=_spellings,
        convert=convert,
        ignore=ignore,
        advise=_advice,
    )


def load_torch(source: Any, *, key: str | None = None) -> dict[str, np.ndarray]:
    """A PyTorch state dict as NumPy arrays.

    Args:
      source: a mapping of names to tensors or arrays; or the path of a ``.safetensors`` file, or of any other that
        ``torch.load(weights_only=True)`` reads, for which PyTorch has to be installed.
      key: where the state dict stands in the file, if there is more in it, such as ``"model"`` or ``"state_dict"``.

    Returns:
      PyTorch's names to arrays; bfloat16 stays bfloat16.

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: the file needs PyTorch, which is not installed.
      TypeError: something in it is not a tensor; the message says where a state dict may be.
      ValueError: the file cannot be read, or has no such key.

    >>> load_torch({"fc.bias": np.zeros(2)})
    {'fc.bias': array([0., 0.])}
    """
    if isinstance(source, str | os.PathLike):
        path = pathlib.Path(source)
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        source = _unpickled(path)
    if key is not None:
        if not isinstance(source, Mapping):
            raise TypeError(f"key={key!r}: expected a mapping around the state dict, got {type(source).__name__}.")
        checks.known(key, source, "key")
        source = source[key]
    if not isinstance(source, Mapping):
        hint = " Give its state_dict()." if hasattr(source, "state_dict") else ""
        raise TypeError(f"expected a state dict, names to tensors, or a path, got {type(source).__name__}.{hint}")
    return {str(name): _array(name, value, source) for name, value in source.items()}


def _array(name: Any, value: Any, source: Mapping[Any, Any]) -> np.ndarray:
    if not hasattr(value, "dtype"):
        inner = [key for key, entry in source.items() if isinstance(entry, Mapping)]
        hint = f" The state dict may be one of {inner}: load_torch(..., key={inner[0]!r})." if inner else ""
        raise TypeError(f"{name!r}: expected a tensor, got {type(value).__name__}.{hint}")
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu()
    try:
        return np.asarray(tensor.numpy())
    except TypeError:  # NumPy by itself has no bfloat16 and no 8-bit floats; float32 holds all their values
        dtype = jnp.dtype(str(tensor.dtype).removeprefix("torch."))
        return np.asarray(tensor.float().numpy()).astype(dtype)


def _unpickled(path: pathlib.Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    try:
        import torch  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError(
            f"{path}: this format is a pickle, which is left to PyTorch to read, and PyTorch is not installed. Install "
            "it, or convert the file where it is: safetensors.torch.save_file(torch.load(path, weights_only=True), "
            "'teacher.safetensors')."
        ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile and PyTorch each have their own
        raise ValueError(
            f"{path}: PyTorch does not read it as weights only: {error} If you trust the file, load it yourself, and "
            "give its state dict."
        ) from error


def _spellings(name: str) -> Iterable[str]:
    """What an array of PyTorch's may be called in a Flax model, if its module is called so."""
    yield name
    name = name.replace(".", "/")
    yield name
    module, slash, leaf = name.rpartition("/")
    for other in _LEAVES.get(leaf, ()):
        yield module + slash + other


def _converter(template: Any, special: Mapping[str, layouts_lib.Layout]) -> Any:
    matchers = [(names_lib.matcher(pattern, "layouts"), layout) for pattern, layout in special.items()]
    places = tree.flatten(template) if special else {}
    for pattern, (matches, _) in zip(special, matchers, strict=True):
        if not any(matches(name) or matches(name.partition("/")[2]) for name in places):
            raise ValueError(f"layouts: {pattern!r} is the name of no array in the model. It has {', '.join(places)}.")

    def convert(name: str, array: Any) -> Any:
        for matches, layout in matchers:
            if matches(name) or matches(name.partition("/")[2]):
                return layout(array)
        return layouts_lib.usual(name, array)

    return convert


def _advice(unused: Sequence[str]) -> str:
    advice = ""
    if any(re.fullmatch(NUM_BATCHES_TRACKED, name) for name in unused):
        advice += " Flax's BatchNorm has no num_batches_tracked: ignore=weights.NUM_BATCHES_TRACKED."
    if unused and all(name.startswith("module.") for name in unused):
        advice += r" The prefix is DataParallel's: names=[(r'^module\.', ''), ...]."
    return advice
