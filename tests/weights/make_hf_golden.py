"""Writes tests/golden/huggingface: tiny random models of Transformers, with inputs and outputs in inference mode.

    python tests/weights/make_hf_golden.py [CASE ...]      (needs torch, transformers, tokenizers; the tests need none)

Each folder is a model as ``save_pretrained`` writes it, and ``reference.safetensors``: ``tokens``, ``mask``, ``types``
(BERT), ``hidden<i>``, ``attention<i>``, ``logits`` or ``pooled``, in float32. Llama's ``untied`` model is in several
files. Values are not those of an initialization: norms and biases would be the identity, which hides mistakes.

Of two pretrained models, whose directories the environment variables JAXKD_MINILM and JAXKD_STORIES give, it writes a
part of the outputs: ``minilm.safetensors`` and ``stories.safetensors``.
"""

import os
import pathlib
import shutil
import sys

import torch  # type: ignore[import-not-found, unused-ignore]
import transformers  # type: ignore[import-not-found, unused-ignore]
from safetensors.torch import save_file  # type: ignore[import-not-found, unused-ignore]
from transformers import (  # type: ignore[import-not-found, unused-ignore]
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MobileBertConfig,
    MobileBertModel,
)

FOLDER = pathlib.Path(__file__).parents[1] / "golden" / "huggingface"
BERT = {
    "vocab_size": 13,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 10,
}
MOBILE = {
    "embedding_size": 4,
    "intra_bottleneck_size": 6,
    "num_feedforward_networks": 3,
    "classifier_activation": False,
}
GPT2 = {"vocab_size": 13, "n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 10}
LLAMA = BERT | {"num_attention_heads": 4, "num_key_value_heads": 2}
CASES = {
    "bert": BertModel(BertConfig(**BERT)),
    "bert_masked_lm": BertForMaskedLM(BertConfig(**BERT, hidden_act="gelu_new", layer_norm_eps=1e-3)),
    "bert_classifier": BertForSequenceClassification(BertConfig(**BERT, num_labels=3, type_vocab_size=3)),
    "gpt2": GPT2LMHeadModel(GPT2Config(**GPT2)),
    "gpt2_untied": GPT2LMHeadModel(GPT2Config(**GPT2, n_inner=12, tie_word_embeddings=False, layer_norm_epsilon=1e-3)),
    "llama_untied": LlamaForCausalLM(LlamaConfig(**LLAMA, head_dim=6, rope_theta=500.0)),
    "llama_tied": LlamaForCausalLM(
        LlamaConfig(**LLAMA, tie_word_embeddings=True, attention_bias=True, mlp_bias=True, rms_norm_eps=1e-3)
    ),
    "mobilebert": MobileBertModel(MobileBertConfig(**BERT, **MOBILE)),
}


SENTENCES = ("A man is playing a guitar.", "Someone plays the piano", "Stocks fell sharply on Monday, analysts said.")


def write_minilm(directory):
    """Writes embeddings, and every 48th feature of the hidden states and two heads of the attentions."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(SENTENCES))
    tokens = torch.tensor([line.ids for line in encoded])
    mask = torch.tensor([line.attention_mask for line in encoded])
    model = BertModel.from_pretrained(directory, attn_implementation="eager").eval()
    with torch.no_grad():
        out = model(tokens, attention_mask=mask, output_hidden_states=True, output_attentions=True)
        mean = (out.last_hidden_state * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    made = {"tokens": tokens.int(), "mask": mask.bool(), "embeddings": torch.nn.functional.normalize(mean, dim=-1)}
    made["hidden"] = torch.stack(out.hidden_states)[..., ::48].contiguous()
    made["attention"] = torch.stack(out.attentions)[:, :, ::6].contiguous()
    save_file(made, FOLDER / "minilm.safetensors", metadata={"transformers": transformers.__version__})


def write_stories(directory):
    """Writes a greedy continuation of the first token, and every 8th logit along it."""
    model = LlamaForCausalLM.from_pretrained(directory, attn_implementation="eager").eval()
    tokens = torch.tensor([[1]])
    with torch.no_grad():
        for _ in range(80):
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], 1)
        logits = model(tokens).logits
    made = {"tokens": tokens.int(), "logits": logits[..., ::8].contiguous()}
    save_file(made, FOLDER / "stories.safetensors", metadata={"transformers": transformers.__version__})


def main():
    for number, (case, model) in enumerate(CASES.items()):
        if len(sys.argv) > 1 and case not in sys.argv[1:]:
            continue
        torch.manual_seed(number)
        model.eval()
        model.set_attn_implementation("eager")
        with torch.no_grad():
            for name, value in model.named_parameters():
                is_norm = "norm" in name.lower() or "ln_" in name
                if is_norm and name.endswith("weight"):
                    value.copy_(0.5 + torch.rand_like(value))
                else:
                    value.copy_(torch.randn_like(value) * 0.4)
        tokens = torch.randint(0, 13, (2, 7))
        mask = torch.ones(2, 7, dtype=torch.bool)
        mask[1, 4:] = False
        if case == "mobilebert":  # whose tokens read their neighbors: padding has to be 0
            tokens[1, 4:] = 0
            with torch.no_grad():
                model.embeddings.word_embeddings.weight[0] = 0
        given = {"input_ids": tokens, "attention_mask": mask.long()}
        made = {"tokens": tokens.int(), "mask": mask}
        if "bert" in case:
            made["types"] = torch.randint(0, model.config.type_vocab_size, (2, 7)).int()
            given["token_type_ids"] = made["types"].long()
        with torch.no_grad():
            out = model(**given, output_hidden_states=True, output_attentions=True)
        made |= {f"hidden{i}": x.contiguous() for i, x in enumerate(out.hidden_states)}
        made |= {f"attention{i}": x.contiguous() for i, x in enumerate(out.attentions)}
        made |= (
            {"pooled": out.pooler_output.contiguous()}
            if case in ("bert", "mobilebert")
            else {"logits": out.logits.contiguous()}
        )
        folder = FOLDER / case
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, max_shard_size="2KB" if case == "llama_untied" else "5GB")
        (folder / "generation_config.json").unlink(missing_ok=True)
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        save_file(made, folder / "reference.safetensors", metadata=versions)
    for variable, write in (("JAXKD_MINILM", write_minilm), ("JAXKD_STORIES", write_stories)):
        if variable in os.environ:
            write(pathlib.Path(os.environ[variable]))
    for path in FOLDER.rglob("*.safetensors"):
        path.chmod(0o644)


if __name__ == "__main__":
    main()
