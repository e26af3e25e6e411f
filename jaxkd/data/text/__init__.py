"""Texts as arrays: tokenizers, sets of sentences, packed documents, corruption.

===============  =====================================================================================================
tokenizers       `Tokenizer`, the protocol: text to ids and back, the bytes of each token (`Aligned`), the special ids
                 (`SPECIALS`). `ByteTokenizer` and `WordTokenizer` need no file, `PieceTokenizer` is SentencePiece's
                 BPE, `JsonTokenizer` reads a ``tokenizer.json`` (extra ``text``); `load_tokenizer` chooses by file
reading          `read_examples`: a set of texts in memory, such as one of `jaxkd.data.source`
sets             `sentences`, `sentence_pairs`: one or two texts in a row, as for classification; `translations`: for an
                 encoder and a decoder; `packed`: documents of a language model, of which none sees another
batches          `Buckets`: texts of similar lengths, in a few shapes; `jaxkd.data.Resident` takes every set
transforms       `mask_tokens`: corruption for a masked language model, on the device, replayable
===============  =====================================================================================================

Entries of a batch, beside those of `jaxkd.data`:

=============  ========================  =============================================================================
``tokens``     int32 ``[batch, tokens]``  ids
``mask``       bool ``[batch, tokens]``   False for padding, and for all tokens of a row that fills up a batch
``types``      int32 ``[batch, tokens]``  0 for the first text of a pair, 1 for the second
``segments``   int32 ``[batch, tokens]``  number of the document in a packed row, from 1; 0 for padding
``positions``  int32 ``[batch, tokens]``  number of the token in its segment, from 0
``bytes``      int32 ``[batch, tokens]``  bytes of text that the label stands for
``label``      int32                      class of an example ``[batch]``, or next token ``[batch, tokens]``
=============  ========================  =============================================================================
"""

from jaxkd.data.text._buckets import Buckets
from jaxkd.data.text._corruption import mask_tokens
from jaxkd.data.text._files import JsonTokenizer, load_tokenizer
from jaxkd.data.text._packed import packed
from jaxkd.data.text._pieces import PieceTokenizer
from jaxkd.data.text._protocol import SPECIALS, Aligned, Tokenizer
from jaxkd.data.text._sets import read_examples, sentence_pairs, sentences, translations
from jaxkd.data.text._simple import ByteTokenizer, WordTokenizer

__all__ = [
    "SPECIALS",
    "Aligned",
    "Buckets",
    "ByteTokenizer",
    "JsonTokenizer",
    "PieceTokenizer",
    "Tokenizer",
    "WordTokenizer",
    "load_tokenizer",
    "mask_tokens",
    "packed",
    "read_examples",
    "sentence_pairs",
    "sentences",
    "translations",
]
