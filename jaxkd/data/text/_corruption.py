"""Corruption of tokens for masked language models: `mask_tokens`."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import checks
from jaxkd.data._transforms import example_keys
from jaxkd.data.text._protocol import Tokenizer
from jaxkd.types import Batch

IGNORED = -100
"""Label of the tokens that a masked language model does not predict."""


def mask_tokens(
    batch: Batch, *, seed: Any, tokenizer: Tokenizer, mask_ratio: float = 0.15, view: int = 0
) -> dict[str, Any]:
    """Corrupts tokens for a masked language model, as a function of the example.

    Also known as: MLM.

    Of each example's ordinary tokens (special ids and padding are none), a share is selected at random: their number
    times ``mask_ratio``, rounded, and at least one. Of the selected ones, 80 % become ``mask``, 10 % any id of the
    vocabulary, and 10 % stay as they are. Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for
    Language Understanding", NAACL 2019, section 3.1 and appendix A.1; the authors' code draws the replacements from the
    whole vocabulary too. The draws depend on the seed and the example's ``epoch`` and ``index`` only. Bind the
    arguments with `functools.partial`, and pass the transform to `jaxkd.distillers.preprocess`.

    Args:
      batch: batch with ``tokens``, integers ``[batch, tokens]``, ``index`` and ``epoch`` ``[batch]``, and a ``mask``,
        True for the tokens that are no padding, ``[batch, tokens]``, if there is padding.
      seed: seed of the run, an integer; it may be traced.
      tokenizer: the tokenizer; its ``specials`` include ``mask``.
      mask_ratio: share of the tokens to select, from 0 to 1.
      view: number of the draw, where an example is drawn several times in an epoch.

    Returns:
      The batch with corrupted ``tokens``; ``label`` int32, the original token where one is selected, and -100, which
      metrics exclude, elsewhere; and ``selected`` bool, the mask for the loss: ``jaxkd.term(losses.cross_entropy,
      "student/logits", "batch/label", where="batch/selected")``. ``mask`` remains the mask of all tokens, over which
      teacher and student can be compared.

    Raises:
      ValueError: the batch lacks an entry, the tokenizer has no ``mask``, or ``mask_ratio`` is out of its range.

    >>> import functools
    >>> from jaxkd.data.text import ByteTokenizer, sentences
    >>> tokenizer = ByteTokenizer(("cls", "sep", "mask", "pad"))
    >>> arrays = sentences(["distillation", "of text"], tokenizer)
    >>> batch = {**arrays, "epoch": np.zeros(2, int)}
    >>> corrupt = jax.jit(functools.partial(mask_tokens, seed=0, tokenizer=tokenizer))
    >>> corrupt(batch)["selected"].sum(axis=1).tolist()
    [2, 1]
    """
    if "mask" not in tokenizer.specials:
        raise ValueError(f"tokenizer: expected a special id 'mask', got {sorted(tokenizer.specials)}.")
    if not 0 <= mask_ratio <= 1:
        raise ValueError(f"mask_ratio: expected a share from 0 to 1, got {mask_ratio}.")
    tokens = jnp.asarray(batch["tokens"]) if "tokens" in batch else None
    if tokens is None or tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"batch: expected integers [batch, tokens] as 'tokens', got {checks.describe(batch) or 'no entries'}."
        )
    specials = np.array(sorted(tokenizer.specials.values()), tokens.dtype)
    ordinary = ~jnp.isin(tokens, specials)
    if "mask" in batch:
        mask = jnp.asarray(batch["mask"])
        ordinary = ordinary & (mask if mask.ndim == 2 else mask[:, None])

    def draw(key: Any) -> tuple[Any, ...]:
        order, kind, word = jax.random.split(key, 3)
        shape = tokens.shape[1:]
        return (
            jax.random.uniform(order, shape),
            jax.random.uniform(kind, shape),
            jax.random.randint(word, shape, 0, tokenizer.vocabulary, tokens.dtype),
        )

    order, kind, word = jax.vmap(draw)(example_keys(batch, seed=seed, view=view))
    # The selected tokens are those with the smallest draws: as many of each example as the table says.
    rank = jnp.argsort(jnp.argsort(jnp.where(ordinary, order, 2), axis=1), axis=1)
    table = np.maximum(np.round(mask_ratio * np.arange(tokens.shape[1] + 1)), np.arange(tokens.shape[1] + 1) > 0)
    count = jnp.asarray(table, jnp.int32)[jnp.sum(ordinary, axis=1)]
    selected = rank < count[:, None]
    changed = jnp.where(kind < 0.8, jnp.asarray(tokenizer.specials["mask"], tokens.dtype), word)
    return {
        **batch,
        "tokens": jnp.where(selected & (kind < 0.9), changed, tokens),
        "label": jnp.where(selected, tokens.astype(jnp.int32), IGNORED),
        "selected": selected,
    }
