"""Reads a Hugging Face ``config.json``, and refuses entries that it does not know."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jaxkd._core import checks

_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

# Entries that do not change what a model computes in inference mode.
_INERT = """
    architectures model_type torch_dtype dtype transformers_version name_or_path use_cache id2label label2id num_labels
    problem_type finetuning_task bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id
    unk_token_id decoder_start_token_id tokenizer_class output_attentions output_hidden_states return_dict torchscript
    use_return_dict initializer_range initializer_factor gradient_checkpointing attn_implementation
    chunk_size_feed_forward pretraining_tp xla_device tf_legacy_loss hidden_dropout_prob attention_probs_dropout_prob
    attention_dropout hidden_dropout classifier_dropout attn_pdrop embd_pdrop resid_pdrop n_ctx summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj reorder_and_upcast_attn directionality
    pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers pooler_size_per_head pooler_type max_length
    min_length do_sample early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p
    repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id
    remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens prefix
    task_specific_params
"""


class Entries:
    """The entries of a ``config.json``, each to be read once.

    `finish` raises for those that were not read, so that no entry that changes the model is ignored.
    """

    def __init__(self, hf_config: Mapping[str, Any], model_type: str) -> None:
        found = hf_config.get("model_type")
        if found != model_type:
            raise ValueError(f"config.json, model_type: expected {model_type!r}, got {found!r}.")
        self._entries = dict(hf_config)
        self._read: set[str] = set()

    def architecture(self, known: Mapping[str, Any], default: str) -> str:
        """Returns the class of the model, one of the known ones, such as ``"BertModel"``."""
        found = self._entries.get("architectures") or [default]
        if len(found) != 1 or found[0] not in known:
            raise ValueError(f"config.json, architectures: expected one of {', '.join(known)}, got {found}.")
        return str(found[0])

    def number(self, name: str, default: int | None = None) -> int:
        """Returns a positive integer."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"config.json, {name}: expected a positive integer, got {value!r}.")
        return value

    def positive(self, name: str, default: float) -> float:
        """Returns a positive real number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise ValueError(f"config.json, {name}: expected a positive number, got {value!r}.")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """Returns a truth value."""
        value = self._value(name, default)
        if not isinstance(value, bool):
            raise ValueError(f"config.json, {name}: expected true or false, got {value!r}.")
        return value

    def activation(self, name: str, default: str) -> str:
        """Returns the name of an activation in this package."""
        value = self._value(name, default)
        if value not in _ACTIVATIONS:
            raise ValueError(f"config.json, {name}: expected one of {', '.join(_ACTIVATIONS)}, got {value!r}.")
        return _ACTIVATIONS[value]

    def mapping(self, name: str) -> dict[str, Any]:
        """Returns a mapping, empty if the entry is absent."""
        value = self._value(name, {})
        if not isinstance(value, Mapping):
            raise ValueError(f"config.json, {name}: expected a mapping, got {checks.kind(value)}.")
        return dict(value)

    def fixed(self, name: str, *values: Any) -> None:
        """Raises unless an entry is absent or one of the values that the models compute."""
        value = self._value(name, values[0])
        if value not in values:
            wanted = " or ".join(map(json.dumps, values))
            raise ValueError(
                f"config.json, {name}: expected {wanted}, which is what the models of this package compute, got "
                f"{json.dumps(value)}."
            )

    def finish(self) -> None:
        """Raises if an entry that may change the model was not read.

        Entries that are null, false or empty change nothing.
        """
        unread = {
            name: value
            for name, value in self._entries.items()
            if name not in self._read | {*_INERT.split()}
            and not name.startswith("_")
            and value not in (None, False, {}, [])
        }
        if unread:
            raise ValueError(
                f"config.json: expected entries that the models of this package implement, got also "
                f"{json.dumps(unread, default=repr)}. If the model computes the same without them, remove them from "
                "the configuration."
            )

    def _value(self, name: str, default: Any) -> Any:
        self._read.add(name)
        value = self._entries.get(name)
        value = default if value is None else value
        if value is None:
            raise ValueError(f"config.json: expected an entry {name!r}, found none.")
        return value
