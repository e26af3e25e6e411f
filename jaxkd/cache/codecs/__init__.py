"""Codecs: lossy encodings of a teacher's output, with bounds on their error.

A codec is chosen for each output: ``codecs={"logits": codecs.top_k(8), "stage2": codecs.eight_bit()}``. Encoding runs
on the device as part of the program that evaluates the teacher, decoding as part of the training step.

================  ==================================================================================
`full`            every number, in 16 or 32 bits
`eight_bit`       every number in 8 bits, with a range for each row
`top_k`           the k largest logits and the mass of the tail
`packed_top_k`    the same in the fewest bits, for large vocabularies, with a stated error
`sampled`         classes drawn from the teacher's distribution, unbiased
`Codec`           contract of all of these; `from_settings` builds the one that a cache was written with
================  ==================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxkd.cache.codecs._codec import Codec
from jaxkd.cache.codecs._numbers import eight_bit, full
from jaxkd.cache.codecs._sampled import sampled
from jaxkd.cache.codecs._top_k import packed_top_k, top_k

__all__ = ["Codec", "eight_bit", "from_settings", "full", "packed_top_k", "sampled", "top_k"]


def from_settings(settings: Mapping[str, Any]) -> Codec:
    """Builds the codec that a cache was written with.

    Args:
      settings: `Codec.settings`, as read from the manifest.

    Raises:
      ValueError: this version has no such codec.

    >>> from_settings(top_k(5).settings).settings
    {'codec': 'top_k', 'k': 5, 'dtype': 'float16'}
    """
    makers: dict[str, Callable[..., Codec]] = {
        "full": full,
        "eight_bit": eight_bit,
        "top_k": top_k,
        "packed_top_k": packed_top_k,
        "sampled": sampled,
    }
    arguments = dict(settings)
    name = arguments.pop("codec", None)
    if name not in makers:
        raise ValueError(
            f"expected a cache written with one of the codecs {sorted(makers)} of this version of jaxkd, got {name!r}. "
            "Read it with the version that wrote it, or write it again."
        )
    return makers[name](**arguments)
