"""Rows of the tokens that a mask includes, stored one after the other.

A codec of tokens encodes every token of a padded sequence, of which a shard stores those of the batch's mask. Two more
files of the shard say where the rows belong: `MASK` has a bit for each token, and `ENDS` the number of rows up to the
end of each example. A token outside of the mask is read as the last stored token before it, or else as the example's
first: what a codec decodes there is finite, and masked. An example without any token in its mask has its first stored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

MASK, ENDS = "mask", "ends"
"""File names of the mask, as bits, and of the ends of the examples."""


def split(
    mask: np.ndarray, arrays: Mapping[str, np.ndarray], names: Collection[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Returns the arrays of some examples as they are read, and as they are stored.

    ``names`` are those of the arrays ``[examples, tokens, ...]`` of which only the tokens of ``mask [examples,
    tokens]`` are stored. The other arrays are the same in both.

    >>> mask, x = np.array([[True, False], [True, True]]), np.array([[5, 6], [7, 8]])
    >>> read, stored = split(mask, {"x": x}, ["x"])
    >>> read["x"].tolist(), stored["x"].tolist(), stored["ends"].tolist(), stored["mask"].tolist()
    ([[5, 5], [7, 8]], [5, 7, 8], [1, 3], [[1], [3]])
    """
    first = np.arange(mask.shape[1])[None, :] == 0
    kept = mask | (first & ~mask.any(axis=1, keepdims=True))
    bits, ends = np.packbits(kept, axis=1, bitorder="little"), np.cumsum(kept.sum(axis=1), dtype=np.int64)
    stored = {name: x[kept] if name in names else x for name, x in arrays.items()}
    where = places(bits, ends, mask.shape[1])
    read = {name: x[where] if name in names else x for name, x in stored.items()}
    return {**read, MASK: bits}, {**stored, MASK: bits, ENDS: ends}


def places(bits: np.ndarray, ends: np.ndarray, tokens: int) -> np.ndarray:
    """Returns the stored row of each token ``[examples, tokens]``.

    ``bits`` and ``ends`` are the examples' rows of `MASK` and of `ENDS`.

    >>> places(np.array([[1], [6]], np.uint8), np.array([4, 6]), 4).tolist()
    [[3, 3, 3, 3], [4, 4, 5, 5]]
    """
    kept = np.unpackbits(bits, axis=1, count=tokens, bitorder="little").astype(np.int64)
    return (ends - kept.sum(axis=1))[:, None] + np.maximum(np.cumsum(kept, axis=1) - 1, 0)
