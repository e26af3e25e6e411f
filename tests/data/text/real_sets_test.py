"""Real sets of texts in a few lines, where they are given by an environment variable."""

import os
import pathlib

import numpy as np
import pytest

from jaxkd import data
from jaxkd.data import text

BYTES = text.ByteTokenizer()


def read(name, split):
    data_dir = os.environ.get("JAXKD_DATA_DIR")
    if not data_dir or not (pathlib.Path(data_dir) / name).is_dir():
        pytest.skip(f"needs the set {name}: set JAXKD_DATA_DIR to a TFDS data_dir that holds it")
    return text.read_examples(data.source(name, split, data_dir))


@pytest.mark.parametrize(("name", "split"), [("tiny_shakespeare", "train"), ("english_novels", "test")])
def test_byte_language_model(name, split):
    documents = read(name, split)["text"]
    rows = text.packed(documents, BYTES, 256)
    size = sum(len(document.encode()) for document in documents)
    assert rows["bytes"].sum() == size and rows["mask"].sum() == size + len(documents)
    first = next(iter(data.Resident(rows, 8, seed=0)))
    assert first["tokens"].shape == (8, 256)


@pytest.mark.parametrize(
    ("name", "entry", "label", "examples", "classes"),
    [("sst_sentences/binary", "sentence", "label", 872, 2), ("trec", "text", "label-coarse", 500, 6)],
)
def test_classification(name, entry, label, examples, classes):
    rows = read(name, "test" if name == "trec" else "validation")
    found = text.sentences(rows[entry], BYTES, label=rows[label])
    assert len(found["label"]) == examples and set(found["label"].tolist()) == set(range(classes))
    ids = found["tokens"][0][found["mask"][0]]
    assert BYTES.decode(ids) == rows[entry][0]


def test_pairs_with_scores():
    rows = read("stsb_multi_mt/en", "test")
    found = text.sentence_pairs(rows["sentence1"], rows["sentence2"], BYTES, label=rows["similarity_score"])
    assert found["label"].dtype == np.float32 and len(found["label"]) == 1379 and found["label"].max() == 5


def test_translations_and_pronunciations():
    rows = read("multi30k", "validation")
    assert text.translations(rows["en"], rows["de"], BYTES)["tokens"].shape[0] == 1014
    lines = read("cmudict", "validation")["text"][0].splitlines()
    words, phonemes = zip(*(line.split("\t") for line in lines), strict=True)
    symbols = text.WordTokenizer(sorted({symbol for spoken in phonemes for symbol in spoken.split()}))
    found = text.translations(words, phonemes, BYTES, symbols)
    assert len(found["label"]) == 4000
    assert symbols.decode(found["label"][0][found["mask"][0]]) == phonemes[0]


def test_pieces_of_a_pretrained_model():
    directory = os.environ.get("JAXKD_STORIES")
    if not directory:
        pytest.skip("needs the tokenizer of stories260K: set JAXKD_STORIES to its directory")
    tokenizer = text.load_tokenizer(directory)
    given = "Once upon a time, there was a little girl named Lily."
    # The ids of the program that the model was trained with.
    assert tokenizer.encode(given)[:4].tolist() == [403, 407, 261, 378] and tokenizer.vocabulary == 512
    for sample in (given, "Ünï ☃\n \tx", " <s> "):
        assert tokenizer.decode(tokenizer.encode(sample)) == sample


def test_word_pieces_of_a_pretrained_model():
    directory = os.environ.get("JAXKD_MINILM")
    if not directory:
        pytest.skip("needs the tokenizer.json of MiniLM-L6: set JAXKD_MINILM to its directory")
    tokenizer = text.load_tokenizer(directory)
    assert tokenizer.vocabulary == 30522
    assert tokenizer.specials == {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    given = "A girl is styling her hair. " * 40  # longer than the truncation that the file contains
    assert tokenizer.encode(given).tolist() == 40 * [1037, 2611, 2003, 20724, 2014, 2606, 1012]
    assert tokenizer.align(given).ends[-1] == len(given)
