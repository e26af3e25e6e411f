"""The plan of a pod: FLOPs, bytes, collectives, extrapolation over layers, and the page's tables."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from benchmarks.scale import costs, networks, page, step

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "scale.json").read_text())
TINY = networks.Size(32, 1, 4, 2, 64, False), networks.Size(32, 1, 4, 2, 64, True)


def test_the_tables_of_the_page_are_those_of_the_results():
    text = (ROOT / "docs" / "scale.md").read_text()
    for name, table in page.tables(RESULTS).items():
        assert text.count(f"<!-- table: scale name={name} -->\n\n{table}\n\n<!-- end -->") == 1
    assert text.count("<!-- table: ") == len(page.tables(RESULTS))


def test_the_results_are_those_of_the_script():
    assert RESULTS["cache"] == costs.cache_rows()
    assert RESULTS["training_flops"] == costs.training_flops()
    for kept, devices in zip(RESULTS["step"], (64, 256), strict=True):
        made = step.whole(RESULTS["compiled"], devices)
        check = made.pop("check")  # shares of rounding errors, beside the numbers of the page
        assert made == {name: value for name, value in kept.items() if name != "check"}
        assert check == pytest.approx(kept["check"], abs=1e-9)


@pytest.mark.slow
def test_parameters_and_state_are_those_of_the_script():
    assert RESULTS["networks"] == networks.networks()
    tiny = networks.Size(32, 3, 4, 2, 64, False)
    assert networks.parameters(tiny) == networks.size(networks.variables(tiny.config()).params)
    for row in RESULTS["state"]:
        copies = 1 if row["rules"] == "replicated" else row["devices"]
        whole = 2 * RESULTS["networks"]["teacher"]["parameters"]
        assert row["bytes"]["teacher"] == pytest.approx(whole / copies, rel=0.02)
        assert row["bytes"]["optimizer"] == pytest.approx(2 * row["bytes"]["student"], rel=1e-4)


@pytest.mark.slow
def test_flops_of_a_layer_are_those_of_the_compilers_count():
    tokens = 64
    batch = {"tokens": jax.ShapeDtypeStruct((1, tokens), jnp.int32)}

    def counted(layers):
        size = networks.Size(256, layers, 4, 2, 512, False)
        model, variables = networks.model(size.config()), networks.variables(size.config())
        lowered = jax.jit(lambda v, b: model.apply(v, b, key=None, train=False)[0]["logits"]).lower(variables, batch)
        return lowered.cost_analysis()["flops"] / tokens, networks.forward_flops(size, tokens)

    (one, formula), (two, double) = counted(1), counted(2)
    assert two - one == pytest.approx(formula["layers"], rel=0.06)  # norms, softmax and masked pairs are counted too
    assert double["layers"] == 2 * formula["layers"]
    assert one == pytest.approx(formula["layers"] + formula["head"], rel=0.06)


def test_collectives_of_a_program():
    program = """
  %all-gather.1 = f32[8,128]{1,0} all-gather(%param.2), dimensions={0}
  %ag = (bf16[4]{0}, bf16[16]{0}) all-gather-start(%param.3)
  ROOT %all-reduce = f32[] all-reduce(%sum), to_apply=%add
  %fusion = f32[99] fusion(%all-gather.1), kind=kLoop
"""
    assert step.collectives(program) == {"all-gather": 8 * 128 * 4 + 40, "all-reduce": 4}


def test_extrapolation_is_linear_in_both_numbers_of_layers():
    rows = [{"layers": layers, "bytes": 7 + 3 * layers[0] + 5 * layers[1]} for layers in step.FITTED]
    assert step.extrapolated(rows, lambda row: row["bytes"], (32, 16)) == 7 + 96 + 80


def test_whole_step_and_the_error_of_its_check():
    rows = [
        {
            **{"devices": 8, "layers": list(layers), "argument_bytes": 10 * layers[0], "temporary_bytes": 100.0},
            "collective_bytes": {"all-gather": layers[1]},
        }
        for layers in (*step.FITTED, step.CHECKED)
    ]
    rows[-1]["temporary_bytes"] = 80.0
    found = step.whole(rows, 8)
    assert (found["argument_bytes"], found["all-gather"]) == (320, 16)
    assert found["temporary_bytes"] == pytest.approx(100) and found["temporary_bytes_of_a_layer"] == 0
    assert found["check"]["temporary_bytes"] == pytest.approx(0.25)
    assert found["check"]["all-gather"] == pytest.approx(0)
    assert "check" not in step.whole(rows[:-1], 8)


@pytest.mark.slow
def test_bytes_a_device_holds():
    mesh = step.mesh_of(4)
    state = step.abstract(4, *TINY, (1, 1), 8)[1]
    copied = step.placed(state, lambda shape: PartitionSpec(), mesh)
    split = step.placed(state, lambda shape: PartitionSpec(*(["data"] if shape and shape[0] % 4 == 0 else [])), mesh)
    assert step.held(copied.student) == 4 * networks.size(copied.student)
    assert step.held(split.student) < 0.3 * step.held(copied.student)


@pytest.mark.slow
def test_generation_takes_the_longer_of_bytes_and_flops():
    rows = {(row["device"], row["sequences"]): row for row in costs.generation_rows()}
    for device in costs.DEVICES:
        few, many = rows[device, 16], rows[device, 256]
        assert many["tokens_per_second"] > few["tokens_per_second"] and many["cache_bytes"] == 16 * few["cache_bytes"]
    enormous = costs.generation_rows(sequences=(10**6,))[0]
    flops = sum(networks.forward_flops(networks.STUDENT, 1024).values())
    limit = costs.USED * costs.DEVICES["H100 SXM"].flops / flops
    assert enormous["tokens_per_second"] <= limit * (1 + 1e-9)


@pytest.mark.slow
def test_a_compiled_step_holds_its_state_and_is_linear_in_the_layers():
    rows = [step.compiled(4, layers, *TINY, tokens=8) for layers in (*step.FITTED, step.CHECKED)]
    for row in rows:
        assert row["argument_bytes"] == pytest.approx(row["state_bytes"], rel=0.01, abs=256)
    found = step.whole(rows, 4)["check"]
    assert abs(found["argument_bytes"]) < 0.01
    assert np.isfinite(found["temporary_bytes"])
