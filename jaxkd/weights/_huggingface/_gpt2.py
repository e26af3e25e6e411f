"""GPT-2's configuration and names in Hugging Face Transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkd.weights import layouts
from jaxkd.weights._huggingface import _form
from jaxkd.weights._huggingface._config import Entries
from jaxkd.weights._huggingface._form import HuggingFace

_ARCHITECTURES = {"GPT2LMHeadModel": True, "GPT2Model": False}
_PARTS = ("query", "key", "value")


def hf_gpt2(hf_config: Mapping[str, Any]) -> HuggingFace:
    """Returns names, layouts and ignored buffers of a GPT-2 of Hugging Face.

    GPT-2's ``Conv1D`` stores kernels as ``[in, out]``: they are not transposed, as a ``Linear``'s is. A transposed
    square kernel has the same shape, so that no check of shapes would find it. ``c_attn`` holds query, key and value
    side by side, and fills three arrays of the model. Files may have the prefix ``transformer.`` or lack it.

    Args:
      hf_config: the content of ``config.json``, as from `load_hf_config`.

    Raises:
      ValueError: an entry is unknown, missing, or asks for something that ``jaxkd.models.Decoder`` does not compute:
        unscaled attention, attention scaled by the layer, cross-attention, an unknown activation.

    >>> sizes = {"vocab_size": 11, "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 9}
    >>> hf_gpt2({"model_type": "gpt2", **sizes}).names["transformer.h.0.attn.c_attn.bias"]
    ('layers/0/attention/query/bias', 'layers/0/attention/key/bias', 'layers/0/attention/value/bias')
    """
    entries = Entries(hf_config, "gpt2")
    head = _ARCHITECTURES[entries.architecture(_ARCHITECTURES, "GPT2LMHeadModel")]
    entries.fixed("scale_attn_weights", True)
    entries.fixed("scale_attn_by_inverse_layer_idx", False)
    entries.fixed("add_cross_attention", False)
    width = entries.number("n_embd")
    mlp_width = entries.number("n_inner", 4 * width)
    tied = entries.flag("tie_word_embeddings", True)
    heads = entries.number("n_head")
    config: dict[str, Any] = {
        "vocabulary": entries.number("vocab_size"),
        "width": width,
        "layers": entries.number("n_layer"),
        "heads": heads,
        "key_value_heads": heads,
        "mlp_width": mlp_width,
        "max_length": entries.number("n_positions"),
        "norm": "layer",
        "norm_epsilon": entries.positive("layer_norm_epsilon", 1e-5),
        "activation": entries.activation("activation_function", "gelu_new"),
        "gated": False,
        "rope_base": None,
        "tied": tied,
        "attention_bias": True,
        "mlp_bias": True,
    }
    entries.finish()
    rows = [
        _form.embed("wte", "embed", config["vocabulary"], width),
        _form.embed("wpe", "positions", config["max_length"], width),
    ]
    for i in range(config["layers"]):
        name, place = f"h.{i}", f"layers/{i}"
        for leaf, shape in (("kernel", (width, width)), ("bias", (width,))):
            fused = tuple(f"{place}/attention/{part}/{leaf}" for part in _PARTS)
            rows.append(_form.Row(f"{name}.attn.c_attn.{'weight' if leaf == 'kernel' else leaf}", fused, shape))
        rows += [
            *_form.norm(f"{name}.ln_1", f"{place}/attention_norm", width),
            *_form.dense(f"{name}.attn.c_proj", f"{place}/attention/out", width, width),
            *_form.norm(f"{name}.ln_2", f"{place}/mlp_norm", width),
            *_form.dense(f"{name}.mlp.c_fc", f"{place}/mlp/up", width, mlp_width),
            *_form.dense(f"{name}.mlp.c_proj", f"{place}/mlp/down", mlp_width, width),
        ]
    rows += _form.norm("ln_f", "final_norm", width)
    rows += [] if tied else _form.dense("lm_head", "lm_head", width, config["vocabulary"], bias=False, head=True)
    return _form.form(
        config,
        rows,
        prefix="transformer.",
        written=head,
        layouts={
            **{rf"layers/\d+/attention/{part}/.*": layouts.part(i, 3) for i, part in enumerate(_PARTS)},
            r"layers/\d+/(attention/out|mlp/up|mlp/down)/kernel": layouts.as_is,
        },
        buffers=(r"h\.\d+\.attn\.(bias|masked_bias)",),
        copies={"lm_head.weight": "embed/embedding"} if tied else {},
    )
