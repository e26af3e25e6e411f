"""Directories of Hugging Face models: names, layouts, tied heads, files, refused configurations, and the way out."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import weights

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "huggingface"
CASES = ("bert", "bert_masked_lm", "bert_classifier", "gpt2", "gpt2_untied", "llama_untied", "llama_tied")
PREFIXES = {"bert": "bert.", "gpt2": "transformer.", "llama": "model."}
HEADS = ("cls.", "classifier.", "lm_head.")


def arrays_of(case):
    """Returns the arrays of a golden model by their names in its file or files."""
    index = GOLDEN / case / "model.safetensors.index.json"
    return weights.load_safetensors(index if index.exists() else GOLDEN / case / "model.safetensors")


def write(directory, arrays, config):
    """Writes a directory as Transformers would, with any names."""
    import safetensors.numpy

    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    made = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(made, directory / "model.safetensors")
    return directory


def edited(case, **entries):
    """Returns the config.json of a golden model with other entries."""
    return weights.load_hf_config(GOLDEN / case) | entries


def params_of(directory):
    return weights.flatten(weights.load_hf(directory)[1])


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


@pytest.mark.parametrize("case", CASES)
def test_out_again_under_the_same_names_shapes_dtypes_and_values(case, tmp_path):
    config, variables = weights.load_hf(GOLDEN / case)
    hf_config = weights.load_hf_config(GOLDEN / case)
    assert not variables.state
    weights.save_hf(tmp_path / "out", variables, hf_config)
    assert_same(weights.load_safetensors(tmp_path / "out" / "model.safetensors"), arrays_of(case))
    assert weights.load_hf_config(tmp_path / "out") == hf_config
    assert weights.load_safetensors_metadata(tmp_path / "out" / "model.safetensors") == {"format": "pt"}
    again, loaded = weights.load_hf(tmp_path / "out")
    assert again == config
    assert_same(weights.flatten(loaded), weights.flatten(variables))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_dtypes_are_those_of_the_file_in_both_directions(dtype, tmp_path):
    arrays = {name: array.astype(dtype) for name, array in arrays_of("gpt2").items()}
    directory = write(tmp_path / "in", arrays, edited("gpt2"))
    _, variables = weights.load_hf(directory)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(dtype)}
    weights.save_hf(tmp_path / "out", variables, edited("gpt2"))
    assert_same(weights.load_safetensors(tmp_path / "out" / "model.safetensors"), arrays)


@pytest.mark.parametrize("case", CASES)
def test_files_may_have_the_prefix_of_the_base_model_or_lack_it(case, tmp_path):
    prefix = PREFIXES[case.partition("_")[0]]
    arrays = arrays_of(case)
    bare = {name.removeprefix(prefix): array for name, array in arrays.items()}
    prefixed = {name if name.startswith(HEADS) else prefix + name: array for name, array in bare.items()}
    for number, renamed in enumerate((bare, prefixed)):
        directory = write(tmp_path / str(number), renamed, edited(case))
        assert_same(params_of(directory), params_of(GOLDEN / case))


@pytest.mark.parametrize("case", ["bert", "bert_masked_lm"])
def test_names_of_tensorflow(case, tmp_path):
    def old(name):
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    renamed = {old(name): array for name, array in arrays_of(case).items()}
    assert renamed.keys() != arrays_of(case).keys()
    assert_same(params_of(write(tmp_path / "tf", renamed, edited(case))), params_of(GOLDEN / case))


@pytest.mark.parametrize(
    ("case", "buffers"),
    [
        ("bert", {"embeddings.position_ids": np.arange(10)[None]}),
        ("bert_masked_lm", {"bert.embeddings.position_ids": np.arange(10)[None]}),
        (
            "bert_masked_lm",
            {"cls.seq_relationship.weight": np.ones((2, 8), "f"), "cls.seq_relationship.bias": np.ones(2)},
        ),
        ("gpt2", {"transformer.h.0.attn.bias": np.ones((1, 1, 10, 10)), "h.1.attn.masked_bias": np.float32(-1e4)}),
        ("llama_untied", {"model.layers.1.self_attn.rotary_emb.inv_freq": np.ones(3, "f")}),
        ("llama_untied", {"model.rotary_emb.inv_freq": np.ones(3, "f")}),
    ],
)
def test_buffers_are_ignored(case, buffers, tmp_path):
    assert_same(params_of(write(tmp_path / "in", arrays_of(case) | buffers, edited(case))), params_of(GOLDEN / case))


def test_every_array_that_is_no_buffer_is_needed_and_used(tmp_path):
    for case in ("bert_classifier", "gpt2", "llama_tied"):
        arrays = arrays_of(case)
        with pytest.raises(weights.WeightsError, match="1 unused"):
            weights.load_hf(write(tmp_path / case, arrays | {"h.0.attn.c_attn.lora_A": np.ones(3)}, edited(case)))
        for name in arrays:
            rest = {other: array for other, array in arrays.items() if other != name}
            with pytest.raises(weights.WeightsError, match="missing"):
                weights.load_hf(write(tmp_path / case, rest, edited(case)))


# --- tied heads -------------------------------------------------------------------------------------------------------

TIED = {
    "gpt2": {"lm_head.weight": "transformer.wte.weight"},
    "llama_tied": {"lm_head.weight": "model.embed_tokens.weight"},
    "bert_masked_lm": {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
}


@pytest.mark.parametrize("case", TIED)
def test_a_tied_head_may_be_repeated_if_it_is_equal(case, tmp_path):
    arrays, wanted = arrays_of(case), params_of(GOLDEN / case)
    for copy, original in TIED[case].items():
        assert copy not in arrays
        repeated = arrays | {copy: arrays[original]}
        assert_same(params_of(write(tmp_path / "both", repeated, edited(case))), wanted)
        moved = {name: array for name, array in repeated.items() if name != original}
        assert_same(params_of(write(tmp_path / "copy", moved, edited(case))), wanted)
        with pytest.raises(weights.WeightsError, match=f"'{copy}': expected the values of '{original}'"):
            weights.load_hf(write(tmp_path / "other", arrays | {copy: 1 + arrays[original]}, edited(case)))


def test_an_untied_model_needs_its_head(tmp_path):
    arrays = {name: array for name, array in arrays_of("llama_untied").items() if name != "lm_head.weight"}
    with pytest.raises(weights.WeightsError, match="missing: params/lm_head/kernel"):
        weights.load_hf(write(tmp_path / "in", arrays, edited("llama_untied")))


# --- layouts ----------------------------------------------------------------------------------------------------------


def test_square_kernels_of_conv1d_are_not_transposed():
    """A transposed square kernel fits as well, so that only its values show the mistake."""
    arrays, params = arrays_of("gpt2"), params_of(GOLDEN / "gpt2")
    square = arrays["transformer.h.0.attn.c_proj.weight"]
    assert square.shape == (8, 8) and not np.array_equal(square, square.T)
    np.testing.assert_array_equal(params["params/layers/0/attention/out/kernel"], square)
    np.testing.assert_array_equal(params["params/layers/1/mlp/up/kernel"], arrays["transformer.h.1.mlp.c_fc.weight"])
    # The head of the untied form is a Linear, and is transposed.
    untied = params_of(GOLDEN / "gpt2_untied")["params/lm_head/kernel"]
    np.testing.assert_array_equal(untied, arrays_of("gpt2_untied")["lm_head.weight"].T)


def test_c_attn_holds_query_key_and_value_side_by_side():
    arrays, params = arrays_of("gpt2"), params_of(GOLDEN / "gpt2")
    for number, part in enumerate(("query", "key", "value")):
        columns = slice(8 * number, 8 * number + 8)
        for leaf, name in (("kernel", "weight"), ("bias", "bias")):
            fused = arrays[f"transformer.h.1.attn.c_attn.{name}"]
            np.testing.assert_array_equal(params[f"params/layers/1/attention/{part}/{leaf}"], fused[..., columns])


def test_kernels_of_linear_layers_are_transposed():
    for case, name, place in (
        ("bert", "encoder.layer.1.attention.output.dense.weight", "layers/1/attention/out/kernel"),
        ("llama_tied", "model.layers.0.self_attn.o_proj.weight", "layers/0/attention/out/kernel"),
    ):
        square = arrays_of(case)[name]
        assert square.shape == (8, 8)
        np.testing.assert_array_equal(params_of(GOLDEN / case)[f"params/{place}"], square.T)


def test_a_form_serves_fit_torch_to():
    for case, hf in (("bert", weights.hf_bert), ("gpt2", weights.hf_gpt2), ("llama_tied", weights.hf_llama)):
        form = hf(edited(case))
        _, variables = weights.load_hf(GOLDEN / case)
        assert {name.removeprefix("params/"): leaf.shape for name, leaf in weights.flatten(variables).items()} == (
            form.shapes
        )
        template = jax.tree.map(jnp.zeros_like, variables)
        fitted = weights.fit_torch_to(
            template, arrays_of(case), names=form.names, layouts=form.layouts, ignore=form.ignore
        )
        assert_same(weights.flatten(fitted), weights.flatten(variables))


def rotated(x, *, interleaved, base=100.0):
    """Rotary embedding ``[tokens, heads, features]`` by its definition, in complex numbers."""
    tokens, _, features = x.shape
    angles = np.arange(tokens)[:, None] * base ** (-np.arange(features // 2) * 2 / features)
    pairs = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., : features // 2], x[..., features // 2 :])
    turned = (pairs[0] + 1j * pairs[1]) * np.exp(1j * angles)[:, None]
    return np.concatenate([turned.real, turned.imag], -1)


def test_half_split_reorders_interleaved_projections():
    """The rotated queries are equal, up to the order of features, in which queries and keys agree."""
    rng = np.random.default_rng(0)
    x, weight, bias = rng.normal(size=(5, 3)), rng.normal(size=(12, 3)), rng.normal(size=12)
    layout = weights.layouts.half_split(2)
    meta = rotated((x @ weight.T + bias).reshape(5, 2, 6), interleaved=True)
    ours = rotated((x @ layout(weight) + layout(bias)).reshape(5, 2, 6), interleaved=False)
    np.testing.assert_allclose(ours, meta, rtol=1e-12)
    with pytest.raises(ValueError, match="divide into 10 heads of pairs"):
        weights.layouts.half_split(5)(weight)


def test_parts_of_an_array_that_does_not_divide():
    with pytest.raises(ValueError, match="expected axis -1 to divide into 3 parts"):
        weights.layouts.part(0, 3)(np.zeros((2, 4)))


# --- files ------------------------------------------------------------------------------------------------------------


def test_arrays_may_lie_in_several_files(tmp_path):
    assert len(list((GOLDEN / "llama_untied").glob("model-*.safetensors"))) > 1
    config = edited("llama_untied")
    whole = write(tmp_path / "whole", arrays_of("llama_untied"), config)
    assert_same(params_of(GOLDEN / "llama_untied"), params_of(whole))
    shutil.copytree(GOLDEN / "llama_untied", tmp_path / "part")
    next((tmp_path / "part").glob("model-00002*")).unlink()
    with pytest.raises(FileNotFoundError, match="model-00002"):
        weights.load_hf(tmp_path / "part")


def test_what_a_directory_lacks_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        weights.load_hf(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(edited("bert")))
    with pytest.raises(
        FileNotFoundError, match=r"expected one of model\.safetensors, .*pytorch_model\.bin, found none"
    ):
        weights.load_hf(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        weights.load_hf_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        weights.load_hf_config(tmp_path)


def test_existing_files_are_replaced_on_request_only(tmp_path):
    _, variables = weights.load_hf(GOLDEN / "gpt2")
    weights.save_hf(tmp_path, variables, edited("gpt2"))
    changed = jax.tree.map(lambda x: x + 1, variables)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        weights.save_hf(tmp_path, changed, edited("gpt2"))
    assert_same(params_of(tmp_path), weights.flatten(variables))
    weights.save_hf(tmp_path, changed, edited("gpt2"), overwrite=True)
    assert_same(params_of(tmp_path), weights.flatten(changed))


def test_weights_that_are_not_those_of_the_configuration_are_not_written(tmp_path):
    _, variables = weights.load_hf(GOLDEN / "gpt2")
    for entries, problem in (
        ({"n_layer": 3}, "16 missing"),  # c_attn.weight and c_attn.bias fill three arrays each
        ({"vocab_size": 14}, "1 mismatched"),
        ({"tie_word_embeddings": False}, "missing: params/lm_head/kernel"),
    ):
        with pytest.raises(weights.WeightsError, match=problem):
            weights.save_hf(tmp_path / "out", variables, edited("gpt2", **entries))
    assert not (tmp_path / "out").exists()
    with pytest.raises(weights.WeightsError, match="state: batch_stats"):
        weights.save_hf(tmp_path / "out", variables._replace(state={"batch_stats": {"x": jnp.ones(2)}}), edited("gpt2"))


# --- configurations ---------------------------------------------------------------------------------------------------


def test_fields_of_the_configuration():
    assert weights.hf_bert(edited("bert_classifier")).config == {
        "vocabulary": 13, "width": 8, "layers": 2, "heads": 2, "mlp_width": 12, "max_length": 10, "types": 3,
        "norm_epsilon": 1e-12, "activation": "gelu", "pre_norm": False, "pooler": True, "mlm": False, "classes": 3,
    }  # fmt: skip
    assert weights.hf_gpt2(edited("gpt2_untied")).config == {
        "vocabulary": 13, "width": 8, "layers": 2, "heads": 2, "key_value_heads": 2, "mlp_width": 12, "max_length": 10,
        "norm": "layer", "norm_epsilon": 1e-3, "activation": "gelu_tanh", "gated": False, "rope_base": None,
        "tied": False, "attention_bias": True, "mlp_bias": True,
    }  # fmt: skip
    assert weights.hf_llama(edited("llama_untied")).config == {
        "vocabulary": 13, "width": 8, "layers": 2, "heads": 4, "key_value_heads": 2, "head_dim": 6, "mlp_width": 12,
        "max_length": 10, "norm": "rms", "norm_epsilon": 1e-6, "activation": "silu", "gated": True, "rope_base": 500.0,
        "rope_interleaved": False, "tied": False, "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip
    assert weights.hf_gpt2(edited("gpt2", n_inner=None)).config["mlp_width"] == 32


def test_the_heads_of_a_bert_are_those_of_its_arrays():
    """Its class is not enough: files of ``BertForMaskedLM`` may hold the pooler of their pretraining."""
    heads = ("pooler", "mlm", "classes")
    found = {case: [weights.load_hf(GOLDEN / case)[0][head] for head in heads] for case in CASES[:3]}
    assert found == {
        "bert": [True, False, None],
        "bert_masked_lm": [False, True, None],
        "bert_classifier": [True, False, 3],
    }


@pytest.mark.parametrize(
    "entries",
    [
        {"rope_theta": 7.0, "rope_parameters": None},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}},
        {"rope_theta": 7.0, "rope_parameters": None, "rope_scaling": {"type": "default"}},
        {"rope_theta": 7.0, "rope_parameters": None, "rope_scaling": None, "sliding_window": None},
    ],
)
def test_the_rotary_base_is_read_from_old_and_new_entries(entries):
    assert weights.hf_llama(edited("llama_tied", **entries)).config["rope_base"] == 7.0


REFUSED = [
    ("llama_tied", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "llama3", "factor": 8.0}}, "rope_parameters"),
    ("llama_tied", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling"),
    ("llama_tied", {"rope_scaling": {"factor": 2.0}}, "rope_scaling"),
    ("llama_tied", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama_tied", {"sliding_window": 4096}, "sliding_window"),
    ("llama_tied", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ("llama_tied", {"hidden_act": "xielu"}, "hidden_act"),
    ("llama_tied", {"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
    ("llama_tied", {"logit_scale": 0.25}, "logit_scale"),
    ("llama_tied", {"auto_map": {"AutoModel": "modeling.Own"}}, "auto_map"),
    ("llama_tied", {"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
    ("llama_tied", {"model_type": "mixtral"}, "mixtral"),
    ("llama_tied", {"hidden_size": None}, "hidden_size"),
    ("llama_tied", {"num_hidden_layers": "2"}, "num_hidden_layers"),
    ("llama_tied", {"rms_norm_eps": -1.0}, "rms_norm_eps"),
    ("llama_tied", {"attention_bias": "no"}, "attention_bias"),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
    ("gpt2", {"use_parallel_residual": True}, "use_parallel_residual"),
    ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
    ("bert", {"is_decoder": True}, "is_decoder"),
    ("bert", {"pruned_heads": {"0": [1]}}, "pruned_heads"),
    ("bert", {"architectures": ["BertForQuestionAnswering"]}, "BertForQuestionAnswering"),
    ("bert_masked_lm", {"tie_word_embeddings": False}, "tie_word_embeddings"),
]


@pytest.mark.parametrize(
    ("case", "entries", "named"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_the_models_do_not_compute_is_refused(case, entries, named, tmp_path):
    with pytest.raises(ValueError, match=rf"config\.json.*{named}"):
        weights.load_hf(write(tmp_path / "in", arrays_of(case), edited(case, **entries)))
    with pytest.raises(ValueError, match=rf"config\.json.*{named}"):
        weights.save_hf(tmp_path / "out", weights.load_hf(GOLDEN / case)[1], edited(case, **entries))


def test_entries_that_change_nothing_are_accepted():
    inert = {"_name_or_path": "x", "use_cache": True, "transformers_version": "4.0", "gradient_checkpointing": False}
    off = {"sliding_window": None, "quantization_config": None, "use_parallel_residual": False, "pruned_heads": {}}
    for case, hf in (("bert", weights.hf_bert), ("gpt2", weights.hf_gpt2), ("llama_tied", weights.hf_llama)):
        assert hf(edited(case, **inert, **off)).config == hf(edited(case)).config
    with pytest.raises(ValueError, match="model_type: expected 'bert', got 'gpt2'"):
        weights.hf_bert(edited("gpt2"))
