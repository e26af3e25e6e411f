"""Tokenizers: exact inverses, the bytes of each token, and byte-pair merges against a search over all pairs."""

import itertools
import json
import pickle
import sys

import numpy as np
import pytest

from jaxkd.data import text

TEXTS = ["", "a", " a", "banana  bandana ", "né ☃\n\tx", "<s> <0x41> </s>", "\u2581a", "日本 日本語", "a" * 40]
BYTES = [(f"<0x{i:02X}>", 0.0) for i in range(256)]
SPECIALS = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]


def pieces(*more, byte_fallback=True):
    letters = [(letter, -100.0 - i) for i, letter in enumerate(" abdnx")]
    return [*SPECIALS, *(BYTES if byte_fallback else []), *letters, *more]


MERGES = (
    ("an", -2.0),
    (" b", -1.0),
    (" ba", -5.0),
    ("na", -2.0),
    ("ana", -3.0),
    ("nan", -3.0),
    (" ban", -4.0),
    ("aa", -6.0),
)
TABLES = {
    "words": pieces(*MERGES),
    "inner-spaces": pieces(*MERGES, ("a ", -1.5), ("  ", -0.5), ("a b", -1.2)),
    "unknown": pieces(*MERGES, byte_fallback=False),
}


def merged(word, scores):
    """Merges the best pair of all, again and again."""
    symbols = list(word)
    while True:
        pairs = [(scores[a + b], -i) for i, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in scores]
        if not pairs:
            return symbols
        i = -max(pairs)[1]
        symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]


@pytest.mark.parametrize("table", TABLES)
def test_pieces_equal_the_search_over_all_pairs(table):
    listed = TABLES[table]
    tokenizer = text.PieceTokenizer(listed)
    names = [piece for piece, _ in listed]
    scores = dict(listed[len(SPECIALS) + (256 if table != "unknown" else 0) :])
    rng = np.random.default_rng(0)
    random = ["".join(rng.choice(list("abn  é"), size)) for size in rng.integers(1, 60, 40)]
    for given in [*TEXTS[1:], *random]:
        expected = []
        for symbol in merged(f" {given}", scores):
            spelled = [f"<0x{byte:02X}>" for byte in symbol.encode()] if table != "unknown" else ["<unk>"]
            expected += [symbol] if symbol in scores else spelled
        assert [names[i] for i in tokenizer.encode(given)] == expected


@pytest.mark.parametrize("given", TEXTS)
@pytest.mark.parametrize(
    "tokenizer", [text.ByteTokenizer(), text.PieceTokenizer(TABLES["words"])], ids=["bytes", "pieces"]
)
def test_decode_inverts_encode_and_the_bytes_add_up(tokenizer, given):
    ids = tokenizer.encode(given)
    assert ids.dtype == np.int32 and not set(ids.tolist()) & set(tokenizer.specials.values())
    framed = [tokenizer.specials["bos"], *ids, tokenizer.specials["eos"]]
    assert tokenizer.decode(framed) == given
    aligned = tokenizer.align(given)
    np.testing.assert_array_equal(aligned.ids, ids)
    assert (np.diff(aligned.ends, prepend=0) >= 0).all()
    assert [*aligned.ends[-1:]] == [len(given.encode())] * bool(given)


def test_ends_cut_the_text_into_the_tokens():
    tokenizer = text.PieceTokenizer(TABLES["words"])
    aligned = tokenizer.align("ban é")
    assert aligned.ends.tolist() == [3, 4, 5, 6]  # " ban", " ", and the two bytes of é
    assert text.ByteTokenizer().align("é").ends.tolist() == [1, 2]


def test_incomplete_bytes_are_replaced_and_ids_are_checked():
    assert text.ByteTokenizer().decode([195, 97]) == "\ufffda"
    assert text.PieceTokenizer(TABLES["unknown"]).decode([0]) == "\ufffd"
    for tokenizer in (text.ByteTokenizer(), text.PieceTokenizer(TABLES["words"]), text.WordTokenizer(["a"])):
        with pytest.raises(ValueError, match="ids: expected 0 to"):
            tokenizer.decode([-100])


def test_vocabularies_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="all of the bytes"):
        text.PieceTokenizer([*SPECIALS, ("<0x00>", 0.0)])
    with pytest.raises(ValueError, match="specials: expected ids of the 2 pieces"):
        text.PieceTokenizer([("a", 0.0), ("b", 0.0)])
    with pytest.raises(ValueError, match="no piece holds 'c'"):
        text.PieceTokenizer([(" ", 0.0), ("b", 0.0)], specials={}).encode("c")
    with pytest.raises(ValueError, match="expected different names out of"):
        text.ByteTokenizer(("pad", "padding"))


def test_words():
    tokenizer = text.WordTokenizer(["AA0", "R", "D"], ("unk", "eos"))
    assert tokenizer.encode(" AA0  R Z").tolist() == [0, 1, 3]
    assert tokenizer.align(" AA0  R D ").ends.tolist() == [4, 7, 10]
    assert tokenizer.decode([0, 2, 4]) == "AA0 D"
    with pytest.raises(ValueError, match="the word 'Z' is not in the list of 1 words"):
        text.WordTokenizer(["AA0"]).encode("AA0 Z")
    for words, message in ((["a", "a"], "'a' twice"), (["a b"], "got 'a b'"), ([""], "got ''")):
        with pytest.raises(ValueError, match=message):
            text.WordTokenizer(words)


def special(number, content):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": True, **flags}


def word_piece(path):
    """A BERT-like tokenizer.json, with the truncation and padding that exported ones often have."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello", "world", "##s", ",", "[", "]", "sep"]
    content = {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [special(i, token) for i, token in enumerate(vocabulary[:5])],
        "normalizer": {
            "type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
            "lowercase": True,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": None,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": {token: i for i, token in enumerate(vocabulary)},
        },
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def test_tokenizer_json_without_its_truncation_padding_and_template(tmp_path):
    word_piece(tmp_path / "tokenizer.json")
    tokenizer = text.load_tokenizer(tmp_path)
    assert isinstance(tokenizer, text.JsonTokenizer) and isinstance(tokenizer, text.Tokenizer)
    assert tokenizer.specials == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4} and tokenizer.vocabulary == 12
    given = "Héllo, worlds [SEP] ☃ "
    assert tokenizer.encode(given).tolist() == [5, 8, 6, 7, 9, 11, 10, 1]
    assert tokenizer.align(given).ends.tolist() == [6, 7, 13, 14, 16, 19, 20, 25]
    assert tokenizer.decode([2, 5, 6, 7, 3, 0]) == "hello worlds"
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(given).tolist() == tokenizer.encode(given).tolist()
    found = text.sentence_pairs(["hello"], ["world"], tokenizer, length=6)
    assert found["tokens"].tolist() == [[2, 5, 3, 6, 3, 0]]


def test_special_tokens_of_a_file_can_be_named(tmp_path):
    path = word_piece(tmp_path / "tokenizer.json")
    assert text.JsonTokenizer(path, {"eos": "[SEP]"}).specials == {"eos": 3}
    with pytest.raises(ValueError, match=r"has no {'bos': '<s>'}"):
        text.JsonTokenizer(path, {"bos": "<s>"})


def test_files_that_are_no_tokenizer_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a file tokenizer\.json or tokenizer_scores\.json"):
        text.load_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ValueError, match="or one with 'pieces'"):
        text.load_tokenizer(tmp_path / "config.json")


def test_missing_library_raises_with_the_extra_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r'tokenizer\.json needs .*pip install "jaxkd-toolkit\[text\]"'):
        text.load_tokenizer(word_piece(tmp_path / "tokenizer.json"))
