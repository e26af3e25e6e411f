"""Tokenizers from files: `load_tokenizer`."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from jaxkd._core.checks import require
from jaxkd.data.text._pieces import PieceTokenizer
from jaxkd.data.text._protocol import Aligned, Tokenizer, check_ids
from jaxkd.data.text._simple import byte_ends

_FILES = ("tokenizer.json", "tokenizer_scores.json")
_USUAL = {
    "pad": ("[PAD]", "<pad>", "<|pad|>", "<|finetune_right_pad_id|>"),
    "bos": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>"),
    "eos": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<cls>"),
    "sep": ("[SEP]", "<sep>"),
    "mask": ("[MASK]", "<mask>"),
}


class JsonTokenizer:
    """A `Tokenizer` of a ``tokenizer.json``, by the library ``tokenizers``.

    The file's truncation, padding and template are not applied: the functions that make data sets cut, pad and insert
    special ids. A text that spells a special token, such as ``[SEP]``, gets ordinary tokens.

    Args:
      file: path of the file.
      specials: the special tokens by name, such as ``{"pad": "<|endoftext|>"}``. By default, those with usual
        spellings, such as ``[CLS]``, ``<s>`` and ``<|endoftext|>``.

    Raises:
      ImportError: ``tokenizers`` is not installed; the message names the extra that installs it.
      ValueError: the vocabulary has no such special token.
    """

    def __init__(self, file: str | os.PathLike[str], specials: Mapping[str, str] | None = None) -> None:
        library = require("tokenizers", purpose="Reading a tokenizer.json", extra="text")
        self._library_tokenizer = library.Tokenizer.from_file(os.fspath(file))
        self._library_tokenizer.no_truncation()
        self._library_tokenizer.no_padding()
        self._library_tokenizer.encode_special_tokens = True
        vocabulary: dict[str, int] = self._library_tokenizer.get_vocab(with_added_tokens=True)
        self.vocabulary = max(vocabulary.values()) + 1  # ids may have gaps
        if missing := {name: token for name, token in (specials or {}).items() if token not in vocabulary}:
            raise ValueError(f"specials: the vocabulary of {os.fspath(file)} has no {missing}.")
        named = {name: (token,) for name, token in specials.items()} if specials is not None else _USUAL
        self.specials: Mapping[str, int] = {
            name: next(vocabulary[token] for token in tokens if token in vocabulary)
            for name, tokens in named.items()
            if not vocabulary.keys().isdisjoint(tokens)
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._library_tokenizer.encode_special_tokens = True  # which the library does not pickle

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of a text, int32 ``[tokens]``."""
        return np.array(self._library_tokenizer.encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of ids, as far as the tokenizer preserves it."""
        hidden = {i for name, i in self.specials.items() if name != "unk"}
        kept = [i for i in check_ids(ids, self.vocabulary) if i not in hidden]
        text: str = self._library_tokenizer.decode(kept, skip_special_tokens=False)
        return text

    def align(self, text: str) -> Aligned:
        """Returns the ids of a text, and where each token ends in it."""
        found = self._library_tokenizer.encode(text, add_special_tokens=False)
        return Aligned(np.array(found.ids, np.int32), byte_ends(text, [end for _, end in found.offsets]))


def load_tokenizer(file: str | os.PathLike[str]) -> Tokenizer:
    """Loads a tokenizer from a file, or from a model's directory.

    Args:
      file: path of a ``tokenizer.json`` of the library ``tokenizers``; of a JSON object with ``pieces``, a list of
        ``[piece, score]`` in the order of their ids, 0 being unknown, 1 the begin and 2 the end of a text (the pieces
        of a SentencePiece BPE model); or of a directory with ``tokenizer.json`` or ``tokenizer_scores.json``.

    Returns:
      A `JsonTokenizer` or a `PieceTokenizer`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file has neither form.
      ImportError: ``tokenizers`` is not installed, and the file needs it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = pathlib.Path(directory, "tokenizer_scores.json")
    ...     pieces = [["<unk>", 0], ["<s>", 0], ["</s>", 0], [" ", -3], ["o", -4], [" o", -1]]
    ...     _ = path.write_text(json.dumps({"pieces": pieces}))
    ...     load_tokenizer(directory).encode("oo").tolist()
    [5, 4]
    """
    path = pathlib.Path(file)
    if path.is_dir():
        found = [path / name for name in _FILES if (path / name).is_file()]
        if not found:
            raise FileNotFoundError(f"{path}: expected a file {_FILES[0]} or {_FILES[1]} in this directory.")
        path = found[0]
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict) and "pieces" in content:
        return PieceTokenizer([(piece, score) for piece, score in content["pieces"]])
    if isinstance(content, dict) and "model" in content:
        return JsonTokenizer(path)
    raise ValueError(
        f"{path}: expected the JSON object of the library tokenizers, with 'model', or one with 'pieces', a list of "
        "[piece, score]."
    )
