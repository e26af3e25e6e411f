"""Paths of the taps of acoustic models, and their inputs from a batch."""

from __future__ import annotations

from typing import Any

from jaxkd.models._attention import attention_taps
from jaxkd.models.speech._config import SpeechConfig
from jaxkd.models.speech._conformer import ConformerConfig
from jaxkd.models.speech._model import SpeechModel
from jaxkd.types import Batch


def speech_taps(model: SpeechModel | SpeechConfig) -> dict[str, str]:
    """Returns the path of each tap of an acoustic model, by its name.

    Args:
      model: the model, or its configuration.

    Returns:
      For `jaxkd.adapters.nnx`: paths of ``embedding``, the subsampled frames, and of ``hidden0``, ``hidden1``, …, the
      output of each layer, all ``[batch, frames, width]``; and of a `Conformer` of each attention's ``queries0``,
      ``keys0`` and ``values0`` ``[batch, frames, heads, features]`` and, with ``tap_attention``, ``scores0``, which are
      ``-inf`` at masked pairs, and ``probabilities0`` ``[batch, heads, queries, keys]``. ``hidden``, the input of the
      head, ``pooled`` and the frames' ``mask`` are outputs.

    >>> from jaxkd.models import AcousticLSTMConfig
    >>> speech_taps(AcousticLSTMConfig(bands=8, labels=10, width=12, layers=2))
    {'embedding': 'front_dropout', 'hidden0': 'layers/0', 'hidden1': 'layers/1'}
    """
    config: Any = getattr(model, "config", model)
    paths = {"embedding": "front_dropout"} | {f"hidden{number}": f"layers/{number}" for number in range(config.layers)}
    return paths | attention_taps(config) if isinstance(config, ConformerConfig) else paths


def speech_inputs(batch: Batch) -> tuple[Any, Any]:
    """Returns a batch's features and their mask for an acoustic model.

    For ``jaxkd.adapters.nnx(..., inputs=models.speech_inputs)``. The entries are ``features`` ``[batch, frames,
    bands]`` and, where it exists, ``frame_mask`` ``[batch, frames]``. The batch's ``mask`` is not among them: it
    selects the utterances that count.

    >>> speech_inputs({"features": 1, "label": 2})
    (1, None)
    """
    return batch["features"], batch.get("frame_mask")
