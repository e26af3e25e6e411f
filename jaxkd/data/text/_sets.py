"""Data sets of texts as arrays: sentences, pairs of sentences, and translations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd._core.arrays.casts import cast
from jaxkd.data._dataset import arrays_of
from jaxkd.data.text._protocol import Tokenizer, as_text, special


def read_examples(dataset: Any) -> dict[str, list[Any]]:
    r"""Reads all examples of a set of texts, as a list of values for each feature.

    Args:
      dataset: an object with ``len(dataset)`` and ``dataset[i]``, a dict, as from `jaxkd.data.source`.

    Returns:
      The features by name, undecoded text as str.

    >>> read_examples([{"text": b"caf\xc3\xa9", "label": 1}, {"text": b"tea", "label": 0}])
    {'text': ['café', 'tea'], 'label': [1, 0]}
    """
    examples = [dataset[i] for i in range(len(dataset))]
    names = examples[0] if examples else ()
    return {name: [as_text(x) if isinstance(x := row[name], bytes) else x for row in examples] for name in names}


def sentences(
    texts: Sequence[str | bytes], tokenizer: Tokenizer, *, length: int | None = None, **others: Any
) -> dict[str, np.ndarray]:
    """Builds a set with one text per example, as for classification.

    A row is ``cls`` (or else ``bos``), the text, and ``sep`` (or else ``eos``), as far as the tokenizer has these ids.

    Args:
      texts: the texts, str or bytes in UTF-8.
      tokenizer: the tokenizer.
      length: tokens in a row, special ids included. Longer texts are cut at their end. By default, that of the longest.
      **others: further arrays with one row per example, by name, such as ``label``.

    Returns:
      Arrays for `jaxkd.data.Resident` and `Buckets`: ``tokens`` int32 ``[examples, length]``, padded at the end;
      ``mask`` bool of the same shape, False for padding; and ``others``.

    Raises:
      ValueError: there are no texts, ``length`` has no place for a text, or an array has another number of rows.

    >>> from jaxkd.data.text import ByteTokenizer
    >>> found = sentences(["no", "yes"], ByteTokenizer(("cls", "sep", "pad")), label=[0, 1])
    >>> found["tokens"].tolist(), found["mask"].sum(axis=1).tolist()
    ([[256, 110, 111, 257, 258], [256, 121, 101, 115, 257]], [4, 5])
    """
    tokens, mask, _ = _rows("sentences", [(text,) for text in texts], tokenizer, length)
    return _with({"tokens": tokens, "mask": mask}, others)


def sentence_pairs(
    texts: Sequence[str | bytes],
    second_texts: Sequence[str | bytes],
    tokenizer: Tokenizer,
    *,
    length: int | None = None,
    **others: Any,
) -> dict[str, np.ndarray]:
    """Builds a set with two texts per example in one row, as for entailment.

    A row is ``cls`` (or else ``bos``), the first text, ``sep`` (or else ``eos``), the second text, and ``sep`` again.
    For an embedding of each text, make two sets with `sentences` instead.

    Args:
      texts: the first texts, str or bytes in UTF-8.
      second_texts: the second texts.
      tokenizer: the tokenizer.
      length: tokens in a row, special ids included. While a row is longer, the last token of the longer of its two
        texts is cut. By default, the length of the longest row.
      **others: further arrays with one row per example, by name, such as ``label``.

    Returns:
      The arrays of `sentences`, with ``types`` int32 ``[examples, length]``: 1 for the second text and its ``sep``,
      else 0.

    Raises:
      ValueError: as for `sentences`, or the numbers of texts differ.

    >>> from jaxkd.data.text import ByteTokenizer
    >>> found = sentence_pairs(["a"], ["bc"], ByteTokenizer(("cls", "sep", "pad")))
    >>> found["tokens"].tolist(), found["types"].tolist()
    ([[256, 97, 257, 98, 99, 257]], [[0, 0, 0, 1, 1, 1]])
    """
    pairs = _paired("sentence_pairs", texts, second_texts)
    tokens, mask, types = _rows("sentence_pairs", pairs, tokenizer, length)
    return _with({"tokens": tokens, "mask": mask, "types": types}, others)


def translations(
    texts: Sequence[str | bytes],
    second_texts: Sequence[str | bytes],
    tokenizer: Tokenizer,
    second_tokenizer: Tokenizer | None = None,
    *,
    length: int | None = None,
    second_length: int | None = None,
    **others: Any,
) -> dict[str, np.ndarray]:
    """Builds a set of texts and their translations, for an encoder and a decoder.

    The decoder reads ``bos`` and the translation, and predicts the translation and ``eos``.

    Args:
      texts: the texts that the encoder reads, str or bytes in UTF-8. They get the special ids of `sentences`.
      second_texts: their translations.
      tokenizer: the tokenizer of the texts.
      second_tokenizer: the tokenizer of the translations, with ``bos`` and ``eos``; by default the same.
      length: tokens in a row of the encoder; by default that of the longest.
      second_length: tokens in a row of the decoder; longer translations are cut at their end, and have no ``eos`` then.
        By default that of the longest.
      **others: further arrays with one row per example, by name.

    Returns:
      ``source`` int32 and ``source_mask`` bool ``[examples, length]``; ``tokens`` int32, the decoder's inputs,
      ``label`` int32, the token after each of them, and ``mask`` bool, ``[examples, second_length]``; and ``others``.

    Raises:
      ValueError: as for `sentence_pairs`, or the second tokenizer has no ``bos`` or no ``eos``.

    >>> from jaxkd.data.text import ByteTokenizer
    >>> found = translations(["ab"], ["c"], ByteTokenizer())
    >>> found["source"].tolist(), found["tokens"].tolist(), found["label"].tolist()
    ([[257, 97, 98, 258]], [[257, 99]], [[99, 258]])
    """
    pairs = _paired("translations", texts, second_texts)
    writer = tokenizer if second_tokenizer is None else second_tokenizer
    if missing := [name for name in ("bos", "eos") if name not in writer.specials]:
        raise ValueError(f"translations: expected a tokenizer with 'bos' and 'eos', got none of {missing}.")
    source, source_mask, _ = _rows("translations", [(first,) for first, _ in pairs], tokenizer, length)
    bos, eos = writer.specials["bos"], writer.specials["eos"]
    written = [np.array([bos, *writer.encode(as_text(second)), eos], np.int32) for _, second in pairs]
    size = _length("translations", second_length, [len(row) - 1 for row in written], least=1)
    tokens, mask = pad([row[:-1][:size] for row in written], size, padding_id(writer))
    label, _ = pad([row[1:][:size] for row in written], size, padding_id(writer))
    arrays = {"source": source, "source_mask": source_mask, "tokens": tokens, "label": label, "mask": mask}
    return _with(arrays, others)


def padding_id(tokenizer: Tokenizer) -> int:
    """Returns the id of padding: ``pad``, or else 0, which the mask excludes."""
    return tokenizer.specials.get("pad", 0)


def pad(rows: Sequence[Any], length: int, value: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of different lengths as one int32 array, and its mask.

    >>> [x.tolist() for x in pad([[5], [6, 7]], 2, 9)]
    [[[5, 9], [6, 7]], [[True, False], [True, True]]]
    """
    mask = np.arange(length)[None] < np.array([len(row) for row in rows])[:, None]
    found = np.full(mask.shape, value, np.int32)
    found[mask] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return found, mask


def _rows(
    name: str, examples: Sequence[tuple[str | bytes, ...]], tokenizer: Tokenizer, length: int | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns tokens, their mask and types: begin, and each text with its end."""
    begin, end = special(tokenizer, "cls", "bos"), special(tokenizer, "sep", "eos")
    encoded = [[tokenizer.encode(as_text(text)) for text in example] for example in examples]
    extra = len(begin) + len(end) * max((len(example) for example in examples), default=0)
    size = _length(name, length, [sum(map(len, parts)) + extra for parts in encoded], least=extra + 1)
    rows, types = [], []
    for parts in encoded:
        kept = _kept([len(part) for part in parts], size - extra)
        framed = [[*part[:count], *end] for part, count in zip(parts, kept, strict=True)]
        framed[0] = [*begin, *framed[0]]
        rows.append([token for part in framed for token in part])
        types.append([number for number, part in enumerate(framed) for _ in part])
    tokens, mask = pad(rows, size, padding_id(tokenizer))
    return tokens, mask, pad(types, size, 0)[0]


def _kept(sizes: list[int], room: int) -> list[int]:
    """Returns how many tokens of each of one or two texts fit."""
    over = sum(sizes) - room
    if over <= 0:
        return sizes
    if len(sizes) == 1:
        return [room]
    # As if the last token of the longer text were cut again and again, of the second one if both are equally long.
    first = sizes[0] if sizes[0] <= room // 2 else max(room - room // 2, room - sizes[1])
    return [first, room - first]


def _length(name: str, length: int | None, needed: list[int], *, least: int) -> int:
    if not needed:
        raise ValueError(f"{name}, texts: expected at least one text, got none.")
    longest = max(*needed, least)
    if length is not None and length < least:
        raise ValueError(f"{name}: expected rows of at least {least} tokens, special ids included, got {length}.")
    return longest if length is None else length


def _paired(name: str, texts: Sequence[Any], second_texts: Sequence[Any]) -> list[tuple[Any, Any]]:
    if len(texts) != len(second_texts):
        raise ValueError(
            f"{name}: expected a second text for each of the {len(texts)} first ones, got {len(second_texts)}."
        )
    return list(zip(texts, second_texts, strict=True))


def _with(arrays: dict[str, np.ndarray], others: Mapping[str, Any]) -> dict[str, np.ndarray]:
    if twice := sorted(arrays.keys() & others.keys()):
        raise ValueError(f"others: expected names other than those of the tokens' arrays, got {twice}.")
    return arrays_of({**arrays, **{name: cast(np.asarray(value)) for name, value in others.items()}})
