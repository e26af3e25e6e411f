"""The protocol of the tokenizers: text to ids and back, the bytes of a token."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

SPECIALS = ("pad", "bos", "eos", "unk", "cls", "sep", "mask")
"""Names of special ids: padding, begin and end of a text, unknown, and BERT's three."""


class Aligned(NamedTuple):
    """Tokens of a text, and the part of the text that each stands for.

    Attributes:
      ids: int32 ``[tokens]``.
      ends: end of each token in the text's UTF-8 form, in bytes, int32 ``[tokens]``, never decreasing. A token begins
        where the one before it ends, so that whitespace without a token belongs to the token after it, and the last
        token ends with the text.
    """

    ids: np.ndarray
    ends: np.ndarray


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back.

    Special ids are never the result of a text, whatever it contains: the functions that make data sets insert them.

    Attributes:
      vocabulary: number of ids.
      specials: special ids by name, those of `SPECIALS` that the tokenizer has.
    """

    vocabulary: int
    specials: Mapping[str, int]

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text without special ids, int32 ``[tokens]``."""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; special ids are left out."""

    def align(self, text: str) -> Aligned:
        """Returns the ids of a text, and where each token ends in it."""


def special(tokenizer: Tokenizer, *names: str) -> list[int]:
    """Returns the first of some special ids that exists, as a list of one or none.

    >>> from jaxkd.data.text import ByteTokenizer
    >>> special(ByteTokenizer(), "cls", "bos"), special(ByteTokenizer(), "mask")
    ([257], [])
    """
    return [tokenizer.specials[name] for name in names if name in tokenizer.specials][:1]


def check_ids(ids: Iterable[int], vocabulary: int) -> list[int]:
    """Returns ids as a list, or raises if one is not in the vocabulary."""
    found = [int(i) for i in ids]
    if wrong := [i for i in found if not 0 <= i < vocabulary]:
        raise ValueError(
            f"decode, ids: expected 0 to {vocabulary - 1}, got {wrong[0]}. Leave out ignored labels such as -100, and "
            "the ids of another vocabulary."
        )
    return found


def as_text(value: str | bytes) -> str:
    """Returns a text of a data set, which may be undecoded UTF-8, as a string.

    >>> as_text("é".encode())
    'é'
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bytes | np.bytes_):
        return bytes(value).decode("utf-8")
    raise TypeError(f"texts: expected str, or bytes in UTF-8, got {type(value).__name__} ({value!r}).")
