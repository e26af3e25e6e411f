"""Tokenizers without a file or a library: bytes, and words of a given list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxkd.data.text._protocol import SPECIALS, Aligned, check_ids

_USUAL = ("pad", "bos", "eos")


class ByteTokenizer:
    """A `Tokenizer` whose tokens are the bytes of the UTF-8 form.

    The id of a byte is its value, 0 to 255. Special ids follow: by default 256 pads, 257 begins and 258 ends a text.

    Args:
      specials: names of the special ids, in their order.

    Raises:
      ValueError: a name is unknown or occurs twice.

    >>> tokenizer = ByteTokenizer()
    >>> ids = tokenizer.encode("né")
    >>> ids.tolist(), tokenizer.decode([257, *ids, 258]), tokenizer.vocabulary
    ([110, 195, 169], 'né', 259)
    """

    def __init__(self, specials: Sequence[str] = _USUAL) -> None:
        self.specials: Mapping[str, int] = _numbered(specials, 256)
        self.vocabulary = 256 + len(self.specials)

    def encode(self, text: str) -> np.ndarray:
        """Returns the bytes of a text, int32 ``[tokens]``."""
        return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids; bytes that are not valid UTF-8 become U+FFFD."""
        return bytes(i for i in check_ids(ids, self.vocabulary) if i < 256).decode("utf-8", errors="replace")

    def align(self, text: str) -> Aligned:
        """Returns the bytes of a text, each of which ends one byte further."""
        ids = self.encode(text)
        return Aligned(ids, np.arange(1, len(ids) + 1, dtype=np.int32))


class WordTokenizer:
    """A `Tokenizer` of words from a list, separated by whitespace.

    It suits phonemes, tags and other symbols. A word has the number of its place in the list; special ids follow.

    Args:
      words: all words.
      specials: names of the special ids, in their order. With ``"unk"``, other words get that id; without it, they are
        an error.

    Raises:
      ValueError: a word occurs twice, or is not one word; a name of a special id is unknown or occurs twice.

    >>> tokenizer = WordTokenizer(["AH", "B", "T"])
    >>> tokenizer.encode("B AH T").tolist(), tokenizer.decode([3, 1, 0, 2, 4])
    ([1, 0, 2], 'B AH T')
    """

    def __init__(self, words: Iterable[str], specials: Sequence[str] = _USUAL) -> None:
        self._words = list(words)
        self._ids = {word: number for number, word in enumerate(self._words)}
        if wrong := [word for word in self._words if word.split() != [word]]:
            raise ValueError(f"words: expected words without whitespace, got {wrong[0]!r}.")
        if len(self._ids) < len(self._words):
            twice = next(word for number, word in enumerate(self._words) if self._ids[word] != number)
            raise ValueError(f"words: expected different words, got {twice!r} twice.")
        self.specials: Mapping[str, int] = _numbered(specials, len(self._words))
        self.vocabulary = len(self._words) + len(self.specials)

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of the words, int32 ``[tokens]``."""
        return self.align(text).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the words of ids, joined by spaces."""
        return " ".join(self._words[i] for i in check_ids(ids, self.vocabulary) if i < len(self._words))

    def align(self, text: str) -> Aligned:
        """Returns the ids of the words, and where each ends in the text."""
        words, unknown = text.split(), self.specials.get("unk")
        ids = [self._ids.get(word, unknown) for word in words]
        if None in ids:
            raise ValueError(
                f"encode: the word {words[ids.index(None)]!r} is not in the list of {len(self._words)} words. Add it, "
                "or give specials=(..., 'unk')."
            )
        ends, position = [], 0
        for word in words:
            position = text.index(word, position) + len(word)
            ends.append(position)
        return Aligned(np.array(ids, np.int32), byte_ends(text, ends))


def byte_ends(text: str, ends: Sequence[int]) -> np.ndarray:
    """Returns ends in characters as ends in bytes, the last being that of the text.

    >>> byte_ends("é a ", [1, 3]).tolist()
    [2, 5]
    """
    sizes = np.array([len(character.encode("utf-8")) for character in text], np.int32)
    bytes_before = np.concatenate([[0], np.cumsum(sizes, dtype=np.int32)]).astype(np.int32)
    found = np.maximum.accumulate(bytes_before[np.asarray(ends, np.int64)])
    found[-1:] = bytes_before[-1]
    return found


def _numbered(names: Sequence[str], first: int) -> dict[str, int]:
    if isinstance(names, str) or set(names) - set(SPECIALS) or len(set(names)) < len(names):
        raise ValueError(f"specials: expected different names out of {list(SPECIALS)}, got {names!r}.")
    return {name: first + number for number, name in enumerate(names)}
