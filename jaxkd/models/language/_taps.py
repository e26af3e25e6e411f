"""Paths of the taps of language models, and their inputs from a batch."""

from __future__ import annotations

from typing import Any

from jaxkd.models.language._decoder import Decoder, DecoderConfig
from jaxkd.types import Batch


def layer_taps(model: Decoder | DecoderConfig) -> dict[str, str]:
    """Returns the path of each tap of a language model, by its name.

    Args:
      model: the model, or its configuration.

    Returns:
      For `jaxkd.adapters.nnx`: paths of ``embedding``, of ``hidden0``, ``queries0``, ``keys0``, ``values0`` and so on
      for each layer, and of ``hidden``, the input of the head, which the ``linear_*`` losses read. With
      ``tap_attention`` also ``scores0``, ``-inf`` at masked pairs, and ``probabilities0``.

    >>> config = DecoderConfig(vocabulary=11, width=8, layers=2, heads=2)
    >>> taps = layer_taps(config)
    >>> taps["hidden1"], taps["values0"], "scores0" in taps
    ('layers/1', 'layers/0/attention/values', False)
    """
    config: Any = getattr(model, "config", model)
    attention = ("queries", "keys", "values") + (("scores", "probabilities") if config.tap_attention else ())
    paths = {"embedding": "embedded", "hidden": "hidden"}
    for number in range(config.layers):
        paths[f"hidden{number}"] = f"layers/{number}"
        paths |= {f"{name}{number}": f"layers/{number}/attention/{name}" for name in attention}
    return paths


def token_inputs(batch: Batch) -> tuple[Any, Any, Any, Any]:
    """Returns a batch's tokens, mask, segments and positions for a language model.

    For ``jaxkd.adapters.nnx(..., inputs=models.token_inputs)``. The entries are ``tokens`` and, where they exist,
    ``token_mask``, ``segments`` and ``positions``. The batch's ``mask`` is not among them: it selects the tokens that
    count, and a prompt is read although it does not count.

    >>> token_inputs({"tokens": 1, "segments": 2})
    (1, None, 2, None)
    """
    return batch["tokens"], batch.get("token_mask"), batch.get("segments"), batch.get("positions")
