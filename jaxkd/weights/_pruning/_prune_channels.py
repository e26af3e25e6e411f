"""Structured pruning of any network: its least important channels are left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import checks, tree_paths
from jaxkd.types import Variables
from jaxkd.weights import _tree
from jaxkd.weights._pruning._channel_groups import ChannelGroup


def filter_norms(source: Any, groups: Mapping[str, ChannelGroup]) -> dict[str, np.ndarray]:
    """Computes the importance of channels as the L1 norm of their filters.

    ``Σ |w|`` over the weights that compute a channel, of all kernels of its group: Li et al., "Pruning Filters for
    Efficient ConvNets", ICLR 2017, section 3.1.

    Args:
      source: weights in any form that `flatten` takes.
      groups: from `channel_groups`.

    Returns:
      The norms ``[size]`` of each group's channels, float64, for `prune_channels`.

    Raises:
      ValueError: the weights lack an array of a group.

    >>> groups = {"params/up": ChannelGroup(2, (("params/down", 0), ("params/up", 1)), (("params/up", 1),))}
    >>> filter_norms({"params": {"up": np.array([[1.0, -2.0], [3.0, 0.5]]), "down": np.ones((2, 4))}}, groups)
    {'params/up': array([4. , 2.5])}
    """
    arrays = _tree.flatten(source)
    found = {}
    for name, group in groups.items():
        total = np.zeros(group.size)
        for array, axis in group.filters:
            checks.known(array, arrays, f"filter_norms, array of the group {name!r}")
            x = np.abs(np.asarray(arrays[array], np.float64))
            total += x.sum(axis=tuple(i for i in range(x.ndim) if i != axis))
        found[name] = total
    return found


def prune_channels(
    source: Any, groups: Mapping[str, ChannelGroup], importance: Mapping[str, Any], sizes: Mapping[str, int]
) -> Variables:
    """Returns the weights of a narrower network, with the most important channels.

    The channels of the largest importance are kept, in their order, in all arrays of their group: kernels on both
    sides, biases, norms and their statistics. Pruning channels that are always 0 changes no output, unless a norm
    averages over the channels. The model of the result is the same architecture with these sizes: half of every group
    of a ResNet is the ResNet of half the width.

    Args:
      source: weights in any form that `flatten` takes.
      groups: from `channel_groups`.
      importance: importance of the channels ``[size]`` of each group in ``sizes``, such as `filter_norms`.
      sizes: the new numbers of channels by group; other groups keep theirs.

    Returns:
      `Variables` of the narrower network.

    Raises:
      ValueError: a group is unknown or has no importance, a size is not from 1 to the group's, the importance has
        another shape or is not finite, or an array does not fit its group.

    >>> groups = {"params/up": ChannelGroup(2, (("params/down", 0), ("params/up", 1)), (("params/up", 1),))}
    >>> large = {"params": {"up": np.array([[1.0, -2.0], [3.0, 0.5]]), "down": np.array([[5.0], [6.0]])}}
    >>> small = prune_channels(large, groups, filter_norms(large, groups), {"params/up": 1})
    >>> small.params["up"].tolist(), small.params["down"].tolist()
    ([[1.0], [3.0]], [[5.0]])
    """
    variables = _tree.student_of(source)
    collections = _tree.collections_of(variables)
    arrays = tree_paths.by_path(collections)
    kept: dict[str, dict[int, np.ndarray]] = {}
    for name, size in sizes.items():
        checks.known(name, groups, "sizes")
        checks.known(name, importance, "importance")
        channels = _kept(name, np.asarray(importance[name], np.float64), size, groups[name].size)
        for array, axis in groups[name].axes:
            checks.known(array, arrays, f"prune_channels, array of the group {name!r}")
            if np.shape(arrays[array])[axis : axis + 1] != (groups[name].size,):
                raise ValueError(
                    f"{array} {checks.shape(arrays[array])}: expected {groups[name].size} channels along axis {axis}, "
                    f"as in the group {name!r}."
                )
            kept.setdefault(array, {})[axis] = channels

    def pruned(name: str, x: Any) -> Any:
        found = np.asarray(x)  # on the host, where no shape is compiled
        for axis, channels in kept[name].items():
            found = np.take(found, channels, axis=axis)
        return jnp.asarray(found)

    leaves = [pruned(name, x) if name in kept else x for name, x in arrays.items()]
    return _tree.variables_of(jax.tree.unflatten(jax.tree.structure(collections), leaves), variables)


def _kept(name: str, scores: np.ndarray, size: int, count: int) -> np.ndarray:
    """Returns the positions of the most important channels, in their order."""
    if scores.shape != (count,) or not np.isfinite(scores).all():
        came = list(scores.shape) if scores.shape != (count,) else "NaN or infinity among them"
        raise ValueError(f"importance, {name}: expected finite numbers [{count}], got {came}.")
    if not 1 <= size <= count:
        raise ValueError(f"sizes, {name}: expected 1 to {count}, got {size}.")
    channels: np.ndarray = np.sort(np.argsort(-scores, kind="stable")[:size])
    return channels
