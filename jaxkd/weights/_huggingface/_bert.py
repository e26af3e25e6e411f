"""BERT's configuration and names in Hugging Face Transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jaxkd.weights._huggingface import _form
from jaxkd.weights._huggingface._config import Entries
from jaxkd.weights._huggingface._form import HuggingFace

_HEADS = {
    "BertModel": ("pooler",),
    "BertForMaskedLM": ("mlm",),
    "BertForPreTraining": ("pooler", "mlm"),
    "BertForSequenceClassification": ("pooler", "classifier"),
}
_MARKS = {  # the array by which a head is known, in a file and in the model
    "pooler": ("pooler.dense.weight", "pooler/kernel"),
    "mlm": ("cls.predictions.transform.dense.weight", "mlm/dense/kernel"),
    "classifier": ("classifier.weight", "classifier/kernel"),
}
_MLM = "cls.predictions"


def hf_bert(hf_config: Mapping[str, Any]) -> HuggingFace:
    """Returns names, layouts and ignored buffers of a BERT of Hugging Face.

    The architectures are ``BertModel``, ``BertForMaskedLM``, ``BertForPreTraining``, whose next-sentence head is
    ignored, and ``BertForSequenceClassification``. Files may have the prefix ``bert.`` or lack it, and may name the
    arrays of a LayerNorm ``gamma`` and ``beta``, as TensorFlow does.

    Args:
      hf_config: the content of ``config.json``, as from `load_hf_config`.

    Raises:
      ValueError: an entry is unknown, missing, or asks for something that ``jaxkd.models.Encoder`` does not compute:
        relative positions, cross-attention, an untied head, an unknown activation.

    >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    >>> form = hf_bert({"model_type": "bert", "vocab_size": 11, "max_position_embeddings": 9, **sizes})
    >>> form.names["bert.encoder.layer.0.attention.self.query.weight"], form.config["mlp_width"]
    (('layers/0/attention/query/kernel',), 16)
    """
    return bert_form(hf_config, _HEADS[Entries(hf_config, "bert").architecture(_HEADS, "BertModel")])


def bert_heads(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the heads whose arrays a file or a model holds, whatever class wrote it.

    >>> bert_heads(["bert.pooler.dense.weight", "cls.predictions.bias"])
    ('pooler',)
    """
    names = list(names)
    return tuple(
        head
        for head, marks in _MARKS.items()
        if any(f".{name}".endswith(f".{mark}") for name in names for mark in marks)
    )


def bert_form(hf_config: Mapping[str, Any], heads: Iterable[str]) -> HuggingFace:
    """Returns `hf_bert` for given heads: ``pooler``, ``mlm``, ``classifier``."""
    entries = Entries(hf_config, "bert")
    entries.fixed("position_embedding_type", "absolute")
    entries.fixed("is_decoder", False)
    entries.fixed("add_cross_attention", False)
    if "mlm" in heads:
        entries.fixed("tie_word_embeddings", True)
    else:
        entries.flag("tie_word_embeddings", True)  # of a head that this model lacks
    width, mlp_width = entries.number("hidden_size"), entries.number("intermediate_size")
    classes = len(hf_config.get("id2label") or ()) or hf_config.get("num_labels") or 2
    config: dict[str, Any] = {
        "vocabulary": entries.number("vocab_size"),
        "width": width,
        "layers": entries.number("num_hidden_layers"),
        "heads": entries.number("num_attention_heads"),
        "mlp_width": mlp_width,
        "max_length": entries.number("max_position_embeddings"),
        "types": entries.number("type_vocab_size", 2),
        "norm_epsilon": entries.positive("layer_norm_eps", 1e-12),
        "activation": entries.activation("hidden_act", "gelu"),
        "pre_norm": False,
        "pooler": "pooler" in heads,
        "mlm": "mlm" in heads,
        "classes": classes if "classifier" in heads else None,
    }
    entries.finish()
    rows = [
        _form.embed("embeddings.word_embeddings", "embed/words", config["vocabulary"], width),
        _form.embed("embeddings.position_embeddings", "embed/positions", config["max_length"], width),
        _form.embed("embeddings.token_type_embeddings", "embed/types", config["types"], width),
        *_form.norm("embeddings.LayerNorm", "embed/norm", width),
    ]
    for i in range(config["layers"]):
        name, place = f"encoder.layer.{i}", f"layers/{i}"
        for part in ("query", "key", "value"):
            rows += _form.dense(f"{name}.attention.self.{part}", f"{place}/attention/{part}", width, width)
        rows += [
            *_form.dense(f"{name}.attention.output.dense", f"{place}/attention/out", width, width),
            *_form.norm(f"{name}.attention.output.LayerNorm", f"{place}/attention_norm", width),
            *_form.dense(f"{name}.intermediate.dense", f"{place}/mlp/up", width, mlp_width),
            *_form.dense(f"{name}.output.dense", f"{place}/mlp/down", mlp_width, width),
            *_form.norm(f"{name}.output.LayerNorm", f"{place}/mlp_norm", width),
        ]
    copies = {}
    if "pooler" in heads:
        rows += _form.dense("pooler.dense", "pooler", width, width)
    if "mlm" in heads:
        rows += [
            _form.Row(f"{_MLM}.bias", ("mlm/bias",), (config["vocabulary"],), head=True),
            *_form.dense(f"{_MLM}.transform.dense", "mlm/dense", width, width, head=True),
            *_form.norm(f"{_MLM}.transform.LayerNorm", "mlm/norm", width, head=True),
        ]
        copies = {f"{_MLM}.decoder.weight": "embed/words/embedding", f"{_MLM}.decoder.bias": "mlm/bias"}
    if "classifier" in heads:
        rows += _form.dense("classifier", "classifier", width, classes, head=True)
    buffers = (r"embeddings\.(position_ids|token_type_ids)", r"cls\.seq_relationship\.(weight|bias)")
    written = entries.architecture(_HEADS, "BertModel") != "BertModel" or bool({"mlm", "classifier"} & set(heads))
    return _form.form(config, rows, prefix="bert.", written=written, buffers=buffers, copies=copies)
