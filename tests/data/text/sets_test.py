"""Sets of texts as arrays: special ids, truncation, padding, and packing that keeps documents apart."""

import collections

import numpy as np
import pytest

from jaxkd import data
from jaxkd.data import text

BYTES = text.ByteTokenizer(("pad", "bos", "eos", "cls", "sep"))
PAD, BOS, EOS, CLS, SEP = (BYTES.specials[name] for name in ("pad", "bos", "eos", "cls", "sep"))


def row(arrays, i, name="tokens", mask="mask"):
    kept = arrays[mask][i]
    assert (arrays[name][i][~kept] == (0 if name == "types" else PAD)).all()
    return arrays[name][i][kept].tolist()


def test_sentences_are_framed_padded_and_cut():
    found = text.sentences([b"no", "longer", ""], BYTES, length=5, label=np.array([2, 0, 1]))
    assert [row(found, i) for i in range(3)] == [[CLS, *b"no", SEP], [CLS, *b"lon", SEP], [CLS, SEP]]
    assert {name: x.dtype.name for name, x in found.items()} == {
        "index": "int32", "tokens": "int32", "mask": "bool", "label": "int32"
    }  # fmt: skip
    assert text.sentences(["no", "longer"], BYTES)["tokens"].shape == (2, 8)
    plain = text.sentences(["no"], text.ByteTokenizer(()), length=4)
    assert plain["tokens"].tolist() == [[*b"no", 0, 0]] and plain["mask"].tolist() == [[True, True, False, False]]


def cut(a, b, room):
    """Cuts the last token of the longer text, of the second one if both are equally long."""
    while len(a) + len(b) > room:
        a, b = (a[:-1], b) if len(a) > len(b) else (a, b[:-1])
    return a, b


@pytest.mark.parametrize("room", range(1, 10))
def test_pairs_are_cut_at_the_longer_text(room):
    sizes = [(i, j) for i in range(6) for j in range(6)]
    first, second = (["abcdef"[: size[k]] for size in sizes] for k in (0, 1))
    found = text.sentence_pairs(first, second, BYTES, length=room + 3)
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        a, b = cut(a, b, room)
        assert row(found, i) == [CLS, *a.encode(), SEP, *b.encode(), SEP]
        assert row(found, i, "types") == [0] * (len(a) + 2) + [1] * (len(b) + 1)


def test_translations_give_the_decoder_its_inputs_and_the_next_tokens():
    symbols = text.WordTokenizer(["x", "y"])
    pad, bos, eos = (symbols.specials[name] for name in ("pad", "bos", "eos"))
    found = text.translations(["ab", "c"], ["x", "y x y"], BYTES, symbols, second_length=3, pair=[[1.0], [2.0]])
    assert [row(found, i, "source", "source_mask") for i in range(2)] == [[CLS, *b"ab", SEP], [CLS, *b"c", SEP]]
    assert found["tokens"].tolist() == [[bos, 0, pad], [bos, 1, 0]]
    assert found["label"].tolist() == [[0, eos, pad], [1, 0, 1]]
    assert found["mask"].tolist() == [[True, True, False], [True, True, True]]
    assert found["pair"].dtype == np.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: text.sentences([], BYTES), "expected at least one text, got none"),
        (lambda: text.sentences(["a"], BYTES, length=2), "rows of at least 3 tokens, special ids included, got 2"),
        (lambda: text.sentences(["a"], BYTES, label=[1, 2]), "the same number of rows"),
        (lambda: text.sentences(["a"], BYTES, mask=[1]), r"got \['mask'\]"),
        (lambda: text.sentence_pairs(["a"], ["b", "c"], BYTES), "a second text for each of the 1 first ones, got 2"),
        (lambda: text.translations(["a"], ["b"], text.ByteTokenizer(("eos",))), r"got none of \['bos'\]"),
        (lambda: text.packed(["a"], BYTES, 0), "at least 1 token in a row"),
        (lambda: text.packed(["a"], text.ByteTokenizer(()), 4), "a document of at least two tokens"),
    ],
)
def test_what_makes_no_set_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_texts_are_strings():
    with pytest.raises(TypeError, match="expected str, or bytes in UTF-8, got int"):
        text.sentences([3], BYTES)


# --- packing --------------------------------------------------------------------------------------------------------


def pieces_of(documents, tokenizer, length):
    """Inputs, labels and bytes of each piece of each document, by hand."""
    found = collections.Counter()
    for document in documents:
        ends = tokenizer.align(document).ends
        ids = [BOS, *tokenizer.encode(document).tolist(), EOS]
        sizes = [0, *np.diff(ends, prepend=0).tolist(), 0]
        for start in range(0, len(ids) - 1, length):
            stop = min(start + length, len(ids) - 1)
            found[tuple(ids[start:stop]), tuple(ids[start + 1 : stop + 1]), tuple(sizes[start + 1 : stop + 1])] += 1
    return found


@pytest.mark.parametrize("length", [1, 5, 16])
def test_packed_rows_hold_every_piece_once_and_apart(length):
    rng = np.random.default_rng(0)
    documents = ["".join(rng.choice(list("abé "), size)) for size in rng.integers(0, 40, 60)]
    rows = text.packed(documents, BYTES, length)
    found: collections.Counter = collections.Counter()
    for i in range(len(rows["tokens"])):
        segments = rows["segments"][i]
        np.testing.assert_array_equal(segments > 0, rows["mask"][i])
        used = segments[segments > 0]
        assert (np.diff(used) >= 0).all() and set(used) == set(range(1, used.max() + 1))
        assert (segments[len(used) :] == 0).all() and (rows["tokens"][i, len(used) :] == PAD).all()
        for number in set(used.tolist()):
            here = segments == number
            assert rows["positions"][i][here].tolist() == list(range(here.sum()))
            found[tuple(tuple(rows[name][i][here].tolist()) for name in ("tokens", "label", "bytes"))] += 1
    assert found == pieces_of(documents, BYTES, length)
    assert rows["bytes"].sum() == sum(len(document.encode()) for document in documents)
    assert rows["mask"].sum() == sum(len(document.encode()) + 1 for document in documents)
    # Best fit in decreasing order needs at most 11/9 of the fewest rows, and one more.
    assert len(rows["tokens"]) <= 11 / 9 * np.ceil(rows["mask"].sum() / length) + 1


def test_packed_rows_fit_a_loader():
    rows = text.packed(["abc", "de", "f"], BYTES, 6)
    batch = next(iter(data.Resident(rows, batch_size=2)))
    assert set(batch) == {"tokens", "label", "segments", "positions", "bytes", "mask", "index", "epoch"}
    assert batch["mask"].shape == (2, 6)


def test_examples_are_read_as_text():
    found = text.read_examples([{"text": "é".encode(), "label": 1}, {"text": b"b", "label": 0}])
    assert found == {"text": ["é", "b"], "label": [1, 0]}
    assert text.read_examples([]) == {}
