"""SentencePiece's byte-pair encoding, from its pieces and their scores.

Kudo & Richardson, "SentencePiece: A simple and language independent subword tokenizer and detokenizer for Neural Text
Processing", EMNLP 2018. A text begins as characters. Of all neighbors whose concatenation is a piece, those with the
highest score are merged, the leftmost first among equal ones, until no such neighbors are left.

How the kernel works: `_merged` keeps the characters in a linked list and the possible merges in a heap. A merge changes
two neighborhoods and leaves obsolete entries in the heap, which no longer spell what lies at their place and are
skipped. Where no piece has a space inside, no merge can reach across the beginning of a word, so that words are merged
one by one, and the results of frequent words are kept.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxkd.data.text._protocol import Aligned, check_ids

_SPACE = "\u2581"  # by which SentencePiece writes a space in its pieces
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD = re.compile(r" [^ ]*|[^ ]+")
_KEPT = 1 << 16  # words


class PieceTokenizer:
    """A `Tokenizer` of SentencePiece's byte-pair encoding with byte fallback.

    A space is prepended to every text that is not empty, as SentencePiece does by default, and removed by `decode`. A
    character that no piece holds becomes its bytes (the pieces ``<0x00>`` to ``<0xFF>``), or ``unk`` if the vocabulary
    has no such pieces. The text is not normalized: `decode` inverts `encode` exactly. See `load_tokenizer` for files.

    Args:
      pieces: pieces with their scores, in the order of their ids; a space is written as such or as ``▁``.
      specials: special ids by name.

    Raises:
      ValueError: a special id is none of a piece, or only some of the 256 bytes are pieces.

    >>> letters = [(character, -9.0) for character in " abn"]
    >>> pieces = [("<unk>", 0.0), *letters, ("an", -1.0), (" b", -2.0), ("ana", -3.0)]
    >>> tokenizer = PieceTokenizer(pieces, specials={"unk": 0})
    >>> ids = tokenizer.encode("banana")
    >>> [pieces[i][0] for i in ids], tokenizer.decode(ids)
    ([' b', 'an', 'ana'], 'banana')
    """

    def __init__(
        self, pieces: Sequence[tuple[str, float]], specials: Mapping[str, int] = {"unk": 0, "bos": 1, "eos": 2}
    ) -> None:
        self.vocabulary = len(pieces)
        self.specials: Mapping[str, int] = dict(specials)
        if wrong := {name: i for name, i in self.specials.items() if not 0 <= i < self.vocabulary}:
            raise ValueError(f"specials: expected ids of the {self.vocabulary} pieces, got {wrong}.")
        self._ids: dict[str, int] = {}
        self._scores: dict[str, float] = {}
        self._bytes: dict[int, int] = {}
        self._spelled: list[bytes] = []
        for i, (piece, score) in enumerate(pieces):
            byte, plain = _BYTE.fullmatch(piece), piece.replace(_SPACE, " ")
            self._spelled.append(b"" if i in self.specials.values() else plain.encode("utf-8"))
            if i in self.specials.values():
                continue
            if byte:
                self._bytes[int(byte[1], 16)] = i
                self._spelled[i] = bytes([int(byte[1], 16)])
            else:
                self._ids[plain], self._scores[plain] = i, float(score)
        if "unk" in self.specials:
            self._spelled[self.specials["unk"]] = "\ufffd".encode()
        if self._bytes and len(self._bytes) < 256:
            raise ValueError(f"pieces: expected all of the bytes <0x00> to <0xFF> or none, got {len(self._bytes)}.")
        self._by_word = all(" " not in piece[1:] for piece in self._ids)
        self._words: dict[str, list[tuple[int, int]]] = {}

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, int32 ``[tokens]``."""
        return self.align(text).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids without its first space; an unknown one is U+FFFD."""
        spelled = b"".join(self._spelled[i] for i in check_ids(ids, self.vocabulary))
        return spelled.removeprefix(b" ").decode("utf-8", errors="replace")

    def align(self, text: str) -> Aligned:
        """Returns the ids of a text, and where each token ends in it."""
        if not text:
            return Aligned(np.zeros(0, np.int32), np.zeros(0, np.int32))
        words = _WORD.findall(f" {text}") if self._by_word else [f" {text}"]
        found = np.array([token for word in words for token in self._tokens(word)], np.int32).reshape(-1, 2)
        # The space in front is no byte of the text.
        return Aligned(found[:, 0], np.cumsum(found[:, 1], dtype=np.int32) - 1)

    def _tokens(self, word: str) -> list[tuple[int, int]]:
        """Returns the id and the number of bytes of each token."""
        if word not in self._words:
            if len(self._words) >= _KEPT:
                self._words.clear()
            self._words[word] = [token for symbol in self._merged(word) for token in self._spell(symbol)]
        return self._words[word]

    def _spell(self, symbol: str) -> list[tuple[int, int]]:
        spelled = symbol.encode("utf-8")
        if symbol in self._ids:
            return [(self._ids[symbol], len(spelled))]
        if self._bytes:
            return [(self._bytes[byte], 1) for byte in spelled]
        if "unk" not in self.specials:
            raise ValueError(f"encode: no piece holds {symbol!r}, and there are neither pieces of bytes nor an 'unk'.")
        return [(self.specials["unk"], len(spelled))]

    def _merged(self, text: str) -> list[str]:
        symbols, size = list(text), len(text)
        before, after = list(range(-1, size - 1)), list(range(1, size + 1))
        merges: list[tuple[float, int, str]] = []

        def offer(left: int) -> None:
            if left >= 0 and after[left] < size:
                piece = symbols[left] + symbols[after[left]]
                if piece in self._scores:
                    heapq.heappush(merges, (-self._scores[piece], left, piece))

        for left in range(size - 1):
            offer(left)
        while merges:
            _, left, piece = heapq.heappop(merges)
            right = after[left]
            if not symbols[left] or right >= size or symbols[left] + symbols[right] != piece:
                continue
            symbols[left], symbols[right], after[left] = piece, "", after[right]
            if after[left] < size:
                before[after[left]] = left
            offer(before[left])
            offer(left)
        return [symbol for symbol in symbols if symbol]
