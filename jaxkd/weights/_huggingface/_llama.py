"""Llama's configuration and names in Hugging Face Transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkd.weights._huggingface import _form
from jaxkd.weights._huggingface._config import Entries
from jaxkd.weights._huggingface._form import HuggingFace

_ARCHITECTURES = {"LlamaForCausalLM": True, "LlamaModel": False}


def hf_llama(hf_config: Mapping[str, Any]) -> HuggingFace:
    """Returns names, layouts and ignored buffers of a Llama of Hugging Face.

    Its rotary embedding is in the half-split convention: feature ``i`` of a head is rotated with feature
    ``i + features / 2``. Files of Meta's own format have the interleaved one, ``2 i`` with ``2 i + 1``; see
    `layouts.half_split`. Files may have the prefix ``model.`` or lack it.

    Args:
      hf_config: the content of ``config.json``, as from `load_hf_config`.

    Raises:
      ValueError: an entry is unknown, missing, or asks for something that ``jaxkd.models.Decoder`` does not compute:
        a scaled or partial rotary embedding, a sliding window, quantized weights, an unknown activation.

    >>> sizes = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    >>> form = hf_llama({"model_type": "llama", "vocab_size": 11, "max_position_embeddings": 9, **sizes})
    >>> form.names["model.layers.0.mlp.gate_proj.weight"], form.config["rope_base"]
    (('layers/0/mlp/gate/kernel',), 10000.0)
    """
    entries = Entries(hf_config, "llama")
    head = _ARCHITECTURES[entries.architecture(_ARCHITECTURES, "LlamaForCausalLM")]
    width, mlp_width, heads = (
        entries.number(name) for name in ("hidden_size", "intermediate_size", "num_attention_heads")
    )
    config: dict[str, Any] = {
        "vocabulary": entries.number("vocab_size"),
        "width": width,
        "layers": entries.number("num_hidden_layers"),
        "heads": heads,
        "key_value_heads": entries.number("num_key_value_heads", heads),
        "head_dim": entries.number("head_dim", width // heads),
        "mlp_width": mlp_width,
        "max_length": entries.number("max_position_embeddings"),
        "norm": "rms",
        "norm_epsilon": entries.positive("rms_norm_eps", 1e-6),
        "activation": entries.activation("hidden_act", "silu"),
        "gated": True,
        "rope_base": _rope_base(entries),
        "rope_interleaved": False,
        "tied": entries.flag("tie_word_embeddings", False),
        "attention_bias": entries.flag("attention_bias", False),
        "mlp_bias": entries.flag("mlp_bias", False),
    }
    entries.finish()
    inner, key_value = config["heads"] * config["head_dim"], config["key_value_heads"] * config["head_dim"]
    biases = {"attention": config["attention_bias"], "mlp": config["mlp_bias"]}
    rows = [_form.embed("embed_tokens", "embed", config["vocabulary"], width)]
    for i in range(config["layers"]):
        for module, new, inputs, outputs in (
            ("self_attn.q_proj", "attention/query", width, inner),
            ("self_attn.k_proj", "attention/key", width, key_value),
            ("self_attn.v_proj", "attention/value", width, key_value),
            ("self_attn.o_proj", "attention/out", inner, width),
            ("mlp.gate_proj", "mlp/gate", width, mlp_width),
            ("mlp.up_proj", "mlp/up", width, mlp_width),
            ("mlp.down_proj", "mlp/down", mlp_width, width),
        ):
            bias = biases[new.partition("/")[0]]
            rows += _form.dense(f"layers.{i}.{module}", f"layers/{i}/{new}", inputs, outputs, bias=bias)
        rows += [
            *_form.norm(f"layers.{i}.input_layernorm", f"layers/{i}/attention_norm", width, bias=False),
            *_form.norm(f"layers.{i}.post_attention_layernorm", f"layers/{i}/mlp_norm", width, bias=False),
        ]
    rows += _form.norm("norm", "final_norm", width, bias=False)
    if not config["tied"]:
        rows += _form.dense("lm_head", "lm_head", width, config["vocabulary"], bias=False, head=True)
    return _form.form(
        config,
        rows,
        prefix="model.",
        written=head,
        buffers=(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",),
        copies={"lm_head.weight": "embed/embedding"} if config["tied"] else {},
    )


def _rope_base(entries: Entries) -> float:
    """Returns the base of the rotary embedding, from either place where it is written.

    Transformers 5 has ``rope_parameters``, older versions ``rope_theta`` beside ``rope_scaling``.
    """
    base = entries.positive("rope_theta", 10000.0)
    for name in ("rope_parameters", "rope_scaling"):
        rope = entries.mapping(name)
        kind = rope.pop("rope_type", rope.pop("type", "default"))
        base = rope.pop("rope_theta", base)
        if rope.pop("partial_rotary_factor", 1.0) != 1.0 or kind != "default" or any(rope.values()):
            raise ValueError(
                f"config.json, {name}: expected the default rotary embedding over whole heads, which is what "
                f"jaxkd.models.Decoder computes, got {entries.mapping(name)}."
            )
    entries.fixed("partial_rotary_factor", 1.0)
    return float(base)
