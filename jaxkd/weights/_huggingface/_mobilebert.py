"""MobileBERT's configuration and names in Hugging Face Transformers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from jaxkd.weights._huggingface import _form
from jaxkd.weights._huggingface._config import Entries
from jaxkd.weights._huggingface._form import HuggingFace

_CLASSES = ("MobileBertModel", "MobileBertForPreTraining", "MobileBertForMaskedLM")


def hf_mobilebert(hf_config: Mapping[str, Any]) -> HuggingFace:
    """Returns names, layouts and ignored buffers of a MobileBERT of Hugging Face.

    The architectures are ``MobileBertModel``, and ``MobileBertForPreTraining`` and ``MobileBertForMaskedLM``, whose
    heads are ignored, so that ``pooled`` of the `jaxkd.models.Encoder` is the mean of its hidden states. A token at the
    end of a text has zeros for the next one; Transformers reads the embedding of padding there, where there is padding.

    Args:
      hf_config: the content of ``config.json``, as from `load_hf_config`.

    Raises:
      ValueError: an entry is unknown, missing, or asks for something that ``jaxkd.models.Encoder`` does not compute.

    >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    >>> form = hf_mobilebert({"model_type": "mobilebert", "vocab_size": 11, "intra_bottleneck_size": 4, **sizes})
    >>> form.names["encoder.layer.0.bottleneck.attention.dense.weight"], form.config["mlp_blocks"]
    (('layers/0/bottleneck/shared/kernel',), 4)
    """
    entries = Entries(hf_config, "mobilebert")
    entries.architecture(dict.fromkeys(_CLASSES), "MobileBertModel")
    entries.fixed("use_bottleneck", True)
    entries.fixed("use_bottleneck_attention", False)
    entries.fixed("key_query_shared_bottleneck", True)
    entries.fixed("normalization_type", "no_norm")
    for name in ("tie_word_embeddings", "classifier_activation"):  # of heads, which this model lacks
        entries.flag(name, True)
    width, narrow = entries.number("hidden_size", 512), entries.number("intra_bottleneck_size", 128)
    config: dict[str, Any] = {
        "vocabulary": entries.number("vocab_size", 30522),
        "width": width,
        "layers": entries.number("num_hidden_layers", 24),
        "heads": entries.number("num_attention_heads", 4),
        "mlp_width": entries.number("intermediate_size", 512),
        "mlp_blocks": entries.number("num_feedforward_networks", 4),
        "max_length": entries.number("max_position_embeddings", 512),
        "types": entries.number("type_vocab_size", 2),
        "embedding_width": entries.number("embedding_size", 128),
        "trigram": entries.flag("trigram_input", True),
        "bottleneck_width": narrow,
        "shared_bottleneck": True,
        "norm": "scale",
        "norm_epsilon": entries.positive("layer_norm_eps", 1e-12),
        "activation": entries.activation("hidden_act", "relu"),
        "pre_norm": False,
    }
    entries.fixed("true_hidden_size", narrow)
    entries.finish()
    rows = [*_embeddings(config), *(row for number in range(config["layers"]) for row in _layer(config, number))]
    buffers = (r"embeddings\.position_ids", r"pooler\.dense\.(weight|bias)", r"cls\..*")
    return _form.form(config, rows, prefix="mobilebert.", written=False, buffers=buffers)


def _embeddings(config: Mapping[str, Any]) -> Iterable[_form.Row]:
    words, width = config["embedding_width"], config["width"]
    yield _form.embed("embeddings.word_embeddings", "embed/words", config["vocabulary"], words)
    yield _form.embed("embeddings.position_embeddings", "embed/positions", config["max_length"], width)
    yield _form.embed("embeddings.token_type_embeddings", "embed/types", config["types"], width)
    inputs = 3 * words if config["trigram"] else words
    yield from _form.dense("embeddings.embedding_transformation", "embed/projection", inputs, width)
    yield from _form.norm("embeddings.LayerNorm", "embed/norm", width)


def _layer(config: Mapping[str, Any], number: int) -> Iterable[_form.Row]:
    name, place = f"encoder.layer.{number}", f"layers/{number}"
    wide, narrow, inner = config["width"], config["bottleneck_width"], config["mlp_width"]
    for part, inputs in (("query", narrow), ("key", narrow), ("value", wide)):
        yield from _form.dense(f"{name}.attention.self.{part}", f"{place}/attention/{part}", inputs, narrow)
    yield from _form.dense(f"{name}.attention.output.dense", f"{place}/attention/out", narrow, narrow)
    yield from _form.norm(f"{name}.attention.output.LayerNorm", f"{place}/attention_norm", narrow)
    blocks = [
        (f"{name}.ffn.{i}", f"{place}/first_mlps/{i}/mlp", f"{place}/first_mlps/{i}/norm")
        for i in range(config["mlp_blocks"] - 1)
    ]
    for block, mlp, norm in [*blocks, (name, f"{place}/mlp", f"{place}/mlp_norm")]:
        yield from _form.dense(f"{block}.intermediate.dense", f"{mlp}/up", narrow, inner)
        yield from _form.dense(f"{block}.output.dense", f"{mlp}/down", inner, narrow)
        yield from _form.norm(f"{block}.output.LayerNorm", norm, narrow)
    for part, own in (("input", "input"), ("attention", "shared")):
        yield from _form.dense(f"{name}.bottleneck.{part}.dense", f"{place}/bottleneck/{own}", wide, narrow)
        yield from _form.norm(f"{name}.bottleneck.{part}.LayerNorm", f"{place}/bottleneck/{own}_norm", narrow)
    yield from _form.dense(f"{name}.output.bottleneck.dense", f"{place}/bottleneck/output", narrow, wide)
    yield from _form.norm(f"{name}.output.bottleneck.LayerNorm", f"{place}/bottleneck/output_norm", wide)
