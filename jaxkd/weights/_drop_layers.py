"""Leaves out layers of a trained model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxkd._core import tree_paths
from jaxkd.types import PyTree, Variables
from jaxkd.weights import _tree


def drop_layers(source: Any, layer_numbers: Sequence[int], *, stack: str = "layers") -> Variables:
    """Returns the weights of a model that keeps some of its layers, renumbered.

    They begin a student of fewer layers, in `jaxkd.wrappers.pretrained`: DistilBERT keeps every second layer of BERT.
    All other arrays are kept. Sanh et al., "DistilBERT, a distilled version of BERT", 2019, section 3.

    Args:
      source: weights in any form that `flatten` takes.
      layer_numbers: the layers to keep, counted from 0, in their new order, such as ``range(0, 6, 2)``.
      stack: path of the layers among the parameters, such as ``"encoder/layers"``: a list of modules (``layers/0``,
        nnx), or what precedes the numbers in the names of modules (``layers_0``, linen).

    Returns:
      `Variables` of the smaller model, whose arrays are those of the source.

    Raises:
      ValueError: there is no such stack, a layer does not exist, or one is named twice.

    >>> teacher = Variables({"layers": {0: {"w": 10}, 1: {"w": 11}, 2: {"w": 12}}, "head": {"w": 5}})
    >>> drop_layers(teacher, [0, 2]).params
    {'head': {'w': 5}, 'layers': {0: {'w': 10}, 1: {'w': 12}}}
    """
    variables = _tree.student_of(source)
    numbers = [int(number) for number in layer_numbers]
    if len(set(numbers)) != len(numbers) or not numbers:
        raise ValueError(f"layer_numbers: expected one or more different numbers, got {numbers}.")
    new = {number: place for place, number in enumerate(numbers)}
    layer = rf"{re.escape(stack)}[/_])(\d+)((?:/.*)?)"
    params, found = _renumbered(variables.params, re.compile(f"({layer}"), new)
    if not found:
        names = sorted({re.sub(r"([/_])\d+(/.*)?$", "", name) for name in tree_paths.by_path(variables.params)})
        raise ValueError(f"stack: expected a path of numbered layers, got {stack!r}. The model has {', '.join(names)}.")
    if absent := sorted(new.keys() - found):
        raise ValueError(f"layer_numbers: expected numbers of the {len(found)} layers in {stack!r}, got also {absent}.")
    # Linen's state has the names of collections above the modules, nnx's has not.
    state, _ = _renumbered(variables.state, re.compile(f"((?:[^/]+/)?{layer}"), new)
    return Variables(params, state)


def _renumbered(tree: PyTree, layer: re.Pattern[str], new: Mapping[int, int]) -> tuple[PyTree, set[int]]:
    """Returns a tree with new numbers of its layers, and the numbers that it had."""
    kept: dict[tuple[Any, ...], Any] = {}
    numbers = set()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        keys = [getattr(entry, "key", getattr(entry, "name", None)) for entry in path]
        found = layer.fullmatch("/".join(map(str, keys)))
        if found is None:
            kept[tuple(keys)] = leaf
            continue
        before, number, after = found[1], int(found[2]), found[3]
        numbers.add(number)
        if number in new:
            parts = f"{before}{new[number]}{after}".split("/")
            kept[tuple(int(part) if isinstance(key, int) else part for part, key in zip(parts, keys, strict=True))] = (
                leaf
            )
    return tree_paths.nest(kept), numbers
