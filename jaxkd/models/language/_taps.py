"""Paths of the taps of language models and `ViT`, and inputs from a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jaxkd.models._attention import attention_taps
from jaxkd.models.language._decoder import Decoder, DecoderConfig
from jaxkd.models.language._encoder import Encoder, EncoderConfig
from jaxkd.models.language._encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from jaxkd.models.language._recurrence import GatedRecurrence, RecurrenceConfig
from jaxkd.types import Batch

if TYPE_CHECKING:
    from jaxkd.models.vision._vit import ViT, ViTConfig

LanguageModel = Decoder | Encoder | EncoderDecoder | GatedRecurrence
LanguageConfig = DecoderConfig | EncoderConfig | EncoderDecoderConfig | RecurrenceConfig


def layer_taps(model: LanguageModel | LanguageConfig | ViT | ViTConfig) -> dict[str, str]:
    """Returns the path of each tap of a sequence model, by its name.

    Args:
      model: the model, or its configuration.

    Returns:
      For `jaxkd.adapters.nnx`: paths of ``embedding``; of ``hidden0``, ``hidden1``, …, the output of each layer; of
      ``hidden``, the input of a decoder's head, which the ``linear_*`` losses read, or a `ViT`'s normalized tokens (an
      encoder has an output of that name, and with its masked-language-model head ``mlm_hidden``); and of each
      attention's ``queries0``, ``keys0`` and ``values0`` ``[batch, tokens, heads, features]`` and, with
      ``tap_attention``, ``scores0``, which are ``-inf`` at masked pairs, and ``probabilities0`` ``[batch, heads,
      queries, keys]``. A `GatedRecurrence` has ``states0``, … instead. Of an `EncoderDecoder`, the encoder's names
      begin with ``encoder_``, and those of cross-attention with ``cross_``.

    >>> config = DecoderConfig(vocabulary=11, width=8, layers=2, heads=2)
    >>> taps = layer_taps(config)
    >>> taps["hidden1"], taps["values0"], "scores0" in taps
    ('layers/1', 'layers/0/attention/values', False)
    """
    config: Any = getattr(model, "config", model)
    if isinstance(config, EncoderDecoderConfig):
        encoder = {f"encoder_{name}": f"encoder/{path}" for name, path in layer_taps(config.encoder).items()}
        cross = attention_taps(config.decoder, "cross_attention", "cross_")
        own = {name: f"decoder/{path}" for name, path in (layer_taps(config.decoder) | cross).items()}
        return encoder | {"encoder_hidden": f"encoder/{_last(config.encoder)}"} | own
    layers = {f"hidden{number}": f"layers/{number}" for number in range(config.layers)}
    if isinstance(config, EncoderConfig):
        mlm = {"mlm_hidden": "mlm/norm"} if config.mlm else {}
        return {"embedding": "embed"} | layers | attention_taps(config) | mlm
    paths = {"embedding": "embedded", "hidden": "hidden"} | layers
    if isinstance(config, RecurrenceConfig):
        return paths | {f"states{number}": f"layers/{number}/recurrence/states" for number in range(config.layers)}
    return paths | attention_taps(config)


def _last(config: EncoderConfig) -> str:
    """Returns the path of an encoder's hidden states."""
    return "final_norm" if config.pre_norm else f"layers/{config.layers - 1}"


def token_inputs(batch: Batch) -> tuple[Any, ...]:
    """Returns a batch's tokens, mask, segments and positions for a language model.

    For ``jaxkd.adapters.nnx(..., inputs=models.token_inputs)``. The entries are ``tokens`` and, where they exist,
    ``token_mask``, True for the tokens that are read, ``segments``, ``positions`` and ``types`` (of an `Encoder`). The
    batch's ``mask`` is not among them: it selects the tokens that count, and a prompt is read although it does not.

    Raises:
      ValueError: the batch has a ``mask`` over tokens, but neither ``token_mask`` nor ``segments``, so that padding
        could not be told from a prompt.

    >>> token_inputs({"tokens": 1, "segments": 2})
    (1, None, 2, None)
    """
    mask = batch.get("mask")
    if "token_mask" not in batch and "segments" not in batch and mask is not None and mask.ndim > 1:
        raise ValueError(
            "token_inputs: expected 'token_mask', True for the tokens that are read, or 'segments' in a batch whose "
            f"'mask' is over tokens, got {', '.join(map(repr, batch))}. Where the mask excludes padding alone, "
            "adapters.nnx(..., inputs=('tokens', 'mask')) reads it as both; a prompt that it excludes is to be read."
        )
    inputs = batch["tokens"], batch.get("token_mask"), batch.get("segments"), batch.get("positions")
    return (*inputs, batch["types"]) if "types" in batch else inputs


def source_inputs(batch: Batch) -> tuple[Any, Any, Any, Any]:
    """Returns a batch's source and tokens, and their masks, for an `EncoderDecoder`.

    The entries are ``source``, ``tokens`` and, where they exist, ``source_mask`` and ``token_mask``. Without the
    latter all tokens are read, of which those at the end are seen by none before them.

    >>> source_inputs({"source": 1, "tokens": 2})
    (1, 2, None, None)
    """
    return batch["source"], batch["tokens"], batch.get("source_mask"), batch.get("token_mask")
