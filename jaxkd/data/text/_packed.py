"""Documents packed into rows of one length, for language models: `packed`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jaxkd.data._dataset import arrays_of
from jaxkd.data.text._protocol import Tokenizer, as_text, special
from jaxkd.data.text._sets import padding_id


def packed(texts: Sequence[str | bytes], tokenizer: Tokenizer, length: int) -> dict[str, np.ndarray]:
    """Packs documents into rows of one length, for language models.

    A document is ``bos``, its text and ``eos``, as far as the tokenizer has these ids. It is cut into pieces of up to
    ``length`` predictions, each of which is one segment of a row, and the pieces are placed by best fit, longest first.
    Every token of a document after its first is the label of exactly one position, hence is predicted once per epoch,
    and ``bos`` (or a first token without it) never. No label is in another document than the tokens before it, and a
    model that attends within segments sees one document only.

    Args:
      texts: the documents, str or bytes in UTF-8.
      tokenizer: the tokenizer.
      length: tokens in a row.

    Returns:
      Arrays ``[rows, length]`` for `jaxkd.data.Resident`, int32 but for the mask: ``tokens``; ``label``, the next token
      of the document; ``segments``, 1, 2, … in each row, and 0 for padding; ``positions`` in the segment, from 0;
      ``bytes``, the bytes of text that the label stands for, 0 for ``eos``, for ``metrics.tokens(...,
      bytes_path="batch/bytes")``; ``mask`` bool, False for padding. ``index`` int32 ``[rows]``. Padding has label 0.

    Raises:
      ValueError: no document has two tokens, or ``length`` is not positive.

    >>> from jaxkd.data.text import ByteTokenizer
    >>> rows = packed(["ab", "c"], ByteTokenizer(("eos",)), length=4)
    >>> for name in ("tokens", "label", "segments", "positions", "bytes"):
    ...     print(name, rows[name].tolist())
    tokens [[97, 98, 99, 0]]
    label [[98, 256, 256, 0]]
    segments [[1, 1, 2, 0]]
    positions [[0, 1, 0, 0]]
    bytes [[1, 0, 0, 0]]
    """
    if length < 1:
        raise ValueError(f"packed, length: expected at least 1 token in a row, got {length}.")
    pieces = [piece for text in texts for piece in _pieces(as_text(text), tokenizer, length)]
    if not pieces:
        raise ValueError("packed, texts: expected a document of at least two tokens, special ids included, got none.")
    rows, starts, segments, count = _places([piece.shape[1] for piece in pieces], length)
    names = ("tokens", "label", "bytes", "segments", "positions", "mask")
    arrays = {name: np.zeros((count, length), np.int32) for name in names}
    arrays["tokens"][:] = padding_id(tokenizer)
    for piece, row, start, segment in zip(pieces, rows, starts, segments, strict=True):
        size = piece.shape[1]
        for name, values in zip(names, (*piece, segment, np.arange(size), 1), strict=True):
            arrays[name][row, start : start + size] = values
    return arrays_of({**arrays, "mask": arrays["mask"].astype(bool)})


def _pieces(text: str, tokenizer: Tokenizer, length: int) -> list[np.ndarray]:
    """Returns int32 ``[3, size]`` arrays: tokens, labels and the labels' bytes."""
    ids, ends = tokenizer.align(text)
    begin, end = special(tokenizer, "bos"), special(tokenizer, "eos")
    tokens = np.concatenate([begin, ids, end]).astype(np.int32)
    sizes = np.concatenate([np.zeros_like(begin), np.diff(ends, prepend=0), np.zeros_like(end)]).astype(np.int32)
    predictions = np.stack([tokens[:-1], tokens[1:], sizes[1:]])
    return [predictions[:, start : start + length] for start in range(0, predictions.shape[1], length)]


def _places(sizes: Sequence[int], length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Returns row, start and segment of each piece, and the number of rows.

    Best fit in decreasing order: a piece goes to the fullest row that has place for it. Of equal ones, the first.

    >>> [x.tolist() for x in _places([2, 3, 1, 2], 4)[:3]]
    [[1, 0, 0, 1], [0, 0, 3, 2], [1, 1, 2, 2]]
    """
    row_of, start_of, segment_of = (np.zeros(len(sizes), np.int32) for _ in range(3))
    open_rows: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the number of free places
    with_rows = 0  # bit n is set where open_rows[n] is not empty, so that the least sufficient n is found at once
    held: list[int] = []
    for piece in np.argsort(-np.asarray(sizes), kind="stable"):
        size = sizes[piece]
        fitting = with_rows >> size
        free = size + (fitting & -fitting).bit_length() - 1 if fitting else length
        if fitting:
            row = open_rows[free].pop(0)
            with_rows &= ~(0 if open_rows[free] else 1 << free)
        else:
            row = len(held)
            held.append(0)
        held[row] += 1
        row_of[piece], start_of[piece], segment_of[piece] = row, length - free, held[row]
        if free > size:
            open_rows[free - size].append(row)
            with_rows |= 1 << (free - size)
    return row_of, start_of, segment_of, len(held)
