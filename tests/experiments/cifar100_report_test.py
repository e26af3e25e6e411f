"""From cells to numbers, tables and plots: by hand, against SciPy, and through whole reports of synthetic cells."""

import copy
import dataclasses
import doctest
import io
import json
import re
import shlex

import numpy as np
import pytest
import tyro
from rich.console import Console
from scipy import stats

from experiments.cifar100 import config, published, report, tables
from experiments.kit import methods, plots, statistics

PAIR = "resnet56:resnet20"
PAPER = dataclasses.asdict(config.PRESETS["paper"])
REDUCED = dataclasses.asdict(config.PRESETS["reduced"])


def cell(method="kd", seed=0, accuracy=0.5, best=None, pair=PAIR, protocol=None, by="test/accuracy", **test):
    """A cell of four classes; the first is right by so much more than the others as the accuracy says."""
    best = accuracy + 0.01 if best is None else best
    measured = {
        "accuracy": accuracy,
        "nll": 1.5,
        "agreement": 0.75,
        "kl_to_teacher": 0.25,
        "calibration_error": 0.0625,
        "per_class": [accuracy + 0.2, accuracy - 0.2, accuracy, accuracy],
        "reliability": {"count": [4, 0], "confidence": [0.5, 0.0], "accuracy": [accuracy, 0.0]},
        "cka": {"stage1": 0.875, "stage2": 0.625},
    }
    return {
        "pair": pair,
        "method": method,
        "seed": seed,
        "protocol": dict(REDUCED if protocol is None else protocol),
        "steps": 600,
        "seconds": 60.0,
        "images_per_second": 1500.0,
        "parameters": 278324,
        "device": "a device",
        "versions": {"jax": "0.10.2"},
        "curve": {"epoch": [1.0, 2.0, 3.0], "test/accuracy": [0.1, best, accuracy], "train/loss": [3.0, 2.0, 1.0]},
        "best": {"epoch": 2.0, "by": by, "test/accuracy": best},
        "test": measured | test,
    }


def teacher(protocol=None, accuracy=0.7):
    found = cell(accuracy=accuracy, protocol=protocol)
    for name in ("agreement", "kl_to_teacher", "cka"):
        del found["test"][name]
    return {name: value for name, value in found.items() if name not in ("pair", "method")}


def cells(accuracies, **options):
    """Cells of several methods: ``{"kd": {0: 0.5, 1: 0.6}}``."""
    return [cell(m, seed, value, **options) for m, seeds in accuracies.items() for seed, value in seeds.items()]


def collected(accuracies, teachers=None, **options):
    """The results as they are after a file."""
    found = report.collect(cells(accuracies, **options), {"resnet56": teacher()} if teachers is None else teachers)
    return json.loads(json.dumps(found, allow_nan=False))


def row_of(results, title, pair=PAIR):
    found = results["pairs"][pair]
    row = next(row for row in tables.rows(pair, found) if row[0] == title)
    return dict(zip(tables.columns(found), row, strict=True))


# Statistics.


def test_a_summary_is_that_of_scipy():
    values = {3: 0.51, 1: 0.48, 2: 0.55}
    found = statistics.summary(values)
    assert (found["seeds"], found["values"]) == ([1, 2, 3], [0.48, 0.55, 0.51])
    data = np.array(list(values.values()))
    assert found["mean"] == pytest.approx(data.mean()) and found["sd"] == pytest.approx(data.std(ddof=1))
    low, high = stats.t.interval(0.95, 2, loc=data.mean(), scale=stats.sem(data))
    assert (found["mean"] - found["half"], found["mean"] + found["half"]) == pytest.approx((low, high))


def test_one_seed_has_no_interval():
    assert statistics.summary({4: 0.5}) == {"seeds": [4], "values": [0.5], "mean": 0.5, "sd": None, "half": None}
    with pytest.raises(ValueError, match="at least one seed"):
        statistics.summary({})


def test_a_mean_does_not_hide_a_seed_that_is_not_finite():
    found = statistics.summary({0: 1.0, 1: float("nan"), 2: float("inf")})
    assert found["values"] == [1.0, None, None] and found["mean"] is found["sd"] is found["half"] is None


def test_differences_are_paired_over_the_seeds_that_both_have():
    # Means of all seeds would say +0.1: 0.6 against 0.5. Seeds 1 and 2 say −0.05, each.
    ours, other = {0: 0.9, 1: 0.45, 2: 0.45}, {1: 0.5, 2: 0.5, 3: 0.5}
    found = statistics.paired(ours, other)
    assert found["seeds"] == [1, 2]
    assert found["mean"] == pytest.approx(-0.05) and found["half"] == pytest.approx(0, abs=1e-12)
    assert statistics.paired({0: 1.0}, {1: 1.0}) is None


def test_last_and_best_are_paired_apart():
    made = [cell("student", 0, 0.40, best=0.45), cell("student", 1, 0.42, best=0.43)]
    made += [cell("kd", 0, 0.50, best=0.51), cell("kd", 1, 0.54, best=0.57)]
    gain = statistics.of_pair(made, published.unlike_published)["methods"]["kd"]["gain"]
    assert gain["last"]["student"]["values"] == pytest.approx([0.10, 0.12])
    assert gain["best"]["student"]["values"] == pytest.approx([0.06, 0.14])
    assert "kd" not in gain["last"]
    assert statistics.of_pair(made, published.unlike_published)["methods"]["student"]["gain"]["last"]["kd"][
        "mean"
    ] == pytest.approx(-0.11)


def test_gains_of_classes_are_paired_too():
    per_class = {0: [0.9, 0.1, 0.5], 1: [0.2, 0.4, 0.5], 2: [0.3, 0.3, None]}
    made = [cell("kd", seed, per_class=values) for seed, values in per_class.items()]
    made += [cell("student", seed, per_class=[0.25, 0.25, 0.25]) for seed in (1, 2, 5)]
    found = statistics.of_pair(made, published.unlike_published)["methods"]
    assert found["kd"]["class_gain"]["seeds"] == [1, 2]
    assert found["kd"]["class_gain"]["mean"][:2] == pytest.approx([0.0, 0.1])
    assert found["kd"]["class_gain"]["mean"][2] is None
    assert found["student"]["class_gain"] is None
    assert statistics.of_pair(made[:3], published.unlike_published)["methods"]["kd"]["class_gain"] is None


def test_empty_bins_do_not_reach_the_pooled_ones():
    bins = {"count": [0, 2], "confidence": [float("nan"), 0.75], "accuracy": [0.0, 0.5]}
    found = statistics.pooled([bins, {"count": [1, 2], "confidence": [0.25, 0.25], "accuracy": [1.0, 1.0]}])
    assert found == {"count": [1, 4], "confidence": [0.25, 0.5], "accuracy": [1.0, 0.75]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 0}, "expected one cell for each seed, got two"),
        ({"protocol": {**REDUCED, "epochs": 24}}, "expected epochs = 12, as cell .* has it, got 24"),
        ({"method": "sp", "protocol": {**REDUCED, "images": 1000}}, "expected images = None, .* got 1000"),
        ({"protocol": {**REDUCED, "weight": 2.0}}, "expected weight = None, .* got 2.0"),
        ({"best": {"epoch": 1.0, "by": "validation/accuracy", "test/accuracy": 0.4}}, "best epoch chosen on test/acc"),
        ({"curve": {"epoch": [1.0], "test/accuracy": [0.5]}}, "expected a curve of the epochs of seed 0"),
    ],
)
def test_cells_that_do_not_pair_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        statistics.of_pair([cell("kd", 0), cell("kd", 1) | change], published.unlike_published)


def test_a_cell_that_is_not_whole_is_refused():
    broken = cell()
    del broken["test"]
    with pytest.raises(
        ValueError, match=r"cell resnet56:resnet20 / kd / seed 0: expected the keys .* there is no test"
    ):
        statistics.of_pair([broken], published.unlike_published)


def test_methods_may_have_settings_of_their_own():
    made = [cell("kd", protocol={**REDUCED, "temperature": 4.0}), cell("student", protocol=REDUCED)]
    found = statistics.of_pair(made, published.unlike_published)
    assert found["protocol"] == REDUCED
    assert found["methods"]["kd"]["protocol"] == {"temperature": 4.0} and not found["methods"]["student"]["protocol"]
    assert "temperature = 4.0" in report.markdown(report.collect(made, {}))


def test_what_is_not_the_published_protocol_is_told():
    assert published.unlike_published(PAPER | {"bf16": True, "eval_every": 10}) == []
    assert published.unlike_published(PAPER | {"images": 10000}) == ["images: 10000 here, all published"]
    assert published.unlike_published({k: v for k, v in PAPER.items() if k != "epochs"}) == [
        "epochs: not recorded here, 240 published"
    ]
    assert published.unlike_published(PAPER | {"epochs": 12}, teacher=True) == []


# Tables.


THREE = {
    "student": {0: 0.40, 1: 0.41, 2: 0.42},
    "kd": {0: 0.44, 1: 0.46, 2: 0.45},
    "fitnet": {0: 0.41, 1: 0.40, 2: 0.42},
    "at": {0: 0.37, 1: 0.38, 2: 0.39},
}


def test_a_row_by_hand():
    results = collected(THREE)
    row = row_of(results, "KD")
    # The standard deviation of 44, 45 and 46 is 1; t(0.975, 2) = 4.3027, over √3: 2.484.
    assert (row["seeds"], row["last epoch (%)"], row["95% interval"]) == ("3", "45.00 ± 1.00", "42.52 to 47.48")
    assert row["best *test* epoch (%)"] == "46.00 ± 1.00 at epoch 2"
    # Gains 4, 5, 3.
    assert (row["gain over alone"], row["gain over KD"]) == ("+4.00 ± 2.48", "–")
    assert (row["agreement (%)"], row["KL to teacher"], row["calibration error (%)"]) == ("75.00", "0.250", "6.25")
    assert (row["published (%)"], row["published gain"], row["direction"]) == ("70.66", "+1.60", "agrees")
    assert row["images/s"] == "1,500"
    assert row_of(results, "FitNet")["direction"] == "unclear"
    # Of AT, −3 at every seed, published +1.49.
    assert row_of(results, "AT")["direction"] == "**opposite**"
    assert row_of(results, "AT")["gain over KD"].startswith("-7.00 ± ")
    alone = row_of(results, "student alone")
    assert (alone["gain over alone"], alone["published gain"], alone["direction"]) == ("–", "–", "–")
    assert row_of(results, "teacher")["last epoch (%)"] == "70.00"


def test_accuracies_are_compared_only_under_the_published_protocol():
    full = collected(
        {"student": {0: 0.69, 1: 0.70}, "kd": {0: 0.71, 1: 0.71}}, {"resnet56": teacher(PAPER, 0.72)}, protocol=PAPER
    )
    assert "published gain" not in tables.columns(full["pairs"][PAIR])
    assert row_of(full, "KD")["ours − published"] == "+0.34"
    assert row_of(full, "student alone")["ours − published"] == "+0.44"
    assert row_of(full, "teacher")["ours − published"] == "-0.34"
    assert row_of(full, "CRD + KD")["ours − published"] == row_of(full, "CRD + KD")["published (%)"] == "–"
    assert "The published protocol: accuracies can be compared" in report.markdown(full)
    short = collected(THREE)
    assert "ours − published" not in tables.columns(short["pairs"][PAIR])
    assert "epochs: 12 here, 240 published" in report.markdown(short)


def test_one_seed():
    results = collected({"student": {0: 0.4}, "kd": {0: 0.45}})
    row = row_of(results, "KD")
    assert (row["last epoch (%)"], row["95% interval"], row["gain over alone"]) == (
        "45.00 (n = 1)",
        "n = 1",
        "+5.00 (n = 1)",
    )
    assert row["direction"] == "unclear (n = 1)"


def test_missing_seeds_are_told():
    results = collected({**THREE, "sp": {1: 0.43, 2: 0.46, 3: 0.9}, "cc": {7: 0.5}})
    # Over the seeds 1 and 2 alone: +2, +4.
    assert row_of(results, "SP")["gain over alone"] == "+3.00 ± 12.71 (2 of 3 seeds)"
    assert row_of(results, "CC")["gain over alone"] == "no seed in common"
    assert row_of(results, "CC")["direction"] == "–"
    assert results["pairs"][PAIR]["seeds"] == [0, 1, 2, 3, 7]
    assert "--method kd " in report.markdown(results)  # seeds 3 and 7 are missing


def test_methods_that_are_not_run():
    results = collected(THREE)
    row = row_of(results, "CRD")
    assert (row["seeds"], row["last epoch (%)"], row["published (%)"], row["published gain"]) == (
        "0",
        "not run yet",
        "71.16",
        "+2.10",
    )
    page = report.markdown(results)
    told = [line for line in page.splitlines() if line.startswith("python -m") and "--method all" not in line]
    assert len(told) == len(methods.METHODS) - len(THREE)
    # What is told can be typed, and leads to the same protocol and seeds.
    for line in told:
        typed = tyro.cli(config.Config, args=shlex.split(line)[3:])
        assert typed.pair == (PAIR,) and typed.method[0] not in THREE
        assert dataclasses.asdict(config.protocol(typed)) == REDUCED and config.seeds(typed) == [0, 1, 2]


def test_a_command_has_the_settings_that_are_no_preset():
    protocol = {**PAPER, "epochs": 5, "images": 10_000, "bf16": True, "teacher_epochs": 7, "cached": True}
    typed = tyro.cli(config.Config, args=shlex.split(report.command(PAIR, "crd", protocol, [3, 4]))[3:])
    assert dataclasses.asdict(config.protocol(typed)) == protocol
    assert config.seeds(typed) == [3, 4]


def test_a_method_that_does_not_exist_for_a_pair_is_not_asked_for():
    pair = "wrn_40_2:wrn_40_1"
    results = collected({"student": {0: 0.4}}, {}, pair=pair)
    assert row_of(results, "FSP", pair)["last epoch (%)"] == "not defined"
    assert row_of(results, "teacher", pair)["last epoch (%)"] == "no record"
    page = report.markdown(results)
    assert "--method fsp" not in page and "--method ofd" in page


def test_a_method_of_ones_own_has_a_row():
    results = collected({**THREE, "mine": {0: 0.5, 1: 0.5, 2: 0.5}})
    assert row_of(results, "mine")["published (%)"] == "–"
    assert list(results["pairs"][PAIR]["methods"])[-1] == "mine"
    assert report.draw(results)["resnet56-resnet20-gains.png"].startswith(b"\x89PNG")


def test_the_best_epoch_says_what_it_is_chosen_on():
    by_test, held_out = collected(THREE), collected(THREE, by="validation/accuracy")
    assert tables.best_title(by_test["pairs"][PAIR]) == "best *test* epoch (%)"
    assert "chosen on the very images" in report.markdown(by_test)
    assert tables.best_title(held_out["pairs"][PAIR]) == "best validation epoch (%)"
    assert "best *test*" not in report.markdown(held_out)


def test_classes_that_are_helped_and_hurt():
    alone, taught = np.full(100, 0.5), np.full(100, 0.5)
    taught[[3, 7, 20]] = 0.7, 0.9, 0.6
    taught[[99, 0]] = 0.1, 0.45
    made = [cell("student", s, per_class=alone.tolist()) for s in (0, 1)]
    made += [cell("kd", s, per_class=taught.tolist()) for s in (0, 1)]
    found = report.collect(made, {})["pairs"][PAIR]
    assert tables.class_rows(found) == [("KD", "beetle +40.0, bear +20.0, chair +10.0", "worm -40.0, apple -5.0")]


def test_nan_is_never_printed():
    nan = float("nan")
    made = [*cells(THREE), cell("sp", 0, nll=nan, kl_to_teacher=nan, calibration_error=nan, cka={"stage1": nan})]
    made.append(cell("cc", 0, accuracy=nan, best=nan))
    broken = teacher()
    broken["test"]["calibration_error"] = nan
    found = report.collect(made, {"resnet56": broken})
    results = json.loads(json.dumps(found, allow_nan=False))
    assert row_of(results, "SP")["KL to teacher"] == "not finite"
    assert row_of(results, "CC")["last epoch (%)"] == row_of(results, "CC")["gain over alone"] == "not finite"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report.table(results))
    for text in (report.markdown(results), console.export_text()):
        assert not re.search(r"\b(nan|inf|None)\b", text, re.IGNORECASE)
    assert all(png.startswith(b"\x89PNG") for png in report.draw(results).values())


def test_a_teacher_from_elsewhere_has_no_history():
    given = teacher() | {"source": "sha256:0123"}
    for name in ("best", "curve", "seconds", "steps", "images_per_second"):
        del given[name]
    results = collected(THREE, {"resnet56": given})
    row = row_of(results, "teacher")
    assert (row["last epoch (%)"], row["best *test* epoch (%)"], row["images/s"]) == ("70.00", "–", "–")
    assert "from elsewhere (sha256:0123)" in report.markdown(results)


def test_pairs_stay_apart_and_in_order():
    made = cells(THREE) + cells({"kd": {0: 0.2}}, pair="resnet20:resnet8", protocol=PAPER)
    results = report.collect(made, {"resnet56": teacher(), "vgg13": teacher()})
    assert list(results["pairs"]) == ["resnet20:resnet8", PAIR]
    assert results["pairs"]["resnet20:resnet8"]["teacher"] is None
    assert results["seconds"] == 60 * (len(made) + 1)  # vgg13 teaches nobody here
    page = report.markdown(results)
    assert page.index("## resnet20 → resnet8") < page.index("## resnet56 → resnet20")
    # Without the student alone there is nothing to pair with.
    assert row_of(results, "KD", "resnet20:resnet8")["gain over alone"] == "–"


def test_an_empty_report():
    results = report.collect([], {})
    page = report.markdown(results)
    assert all(pair in page for pair in published.PAIRS) and report.draw(results) == {}
    assert report.table(results).row_count == 0


def test_cells_are_read_from_their_folders(tmp_path):
    for one in cells(THREE):
        folder = tmp_path / PAIR.replace(":", "-") / one["method"] / f"seed{one['seed']}"
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(json.dumps(one))
    (tmp_path / PAIR.replace(":", "-") / "kd" / "seed9").mkdir()  # of a cell that is not finished
    found = report.collect(report.read(tmp_path), {"resnet56": teacher()})
    assert json.dumps(found) == json.dumps(report.collect(cells(THREE), {"resnet56": teacher()}))


def test_the_order_of_cells_does_not_matter():
    made = cells(THREE)
    assert json.dumps(report.collect(made, {})) == json.dumps(report.collect(copy.deepcopy(made[::-1]), {}))


# Plots.


@pytest.mark.slow
def test_every_plot_that_the_report_shows_is_made_and_is_always_the_same():
    results = collected(THREE)
    drawn, again = report.draw(results), report.draw(results)
    assert drawn == again
    assert set(re.findall(r"!\[.*?\]\((.*?)\)", report.markdown(results))) == set(drawn)
    assert len(set(drawn.values())) == len(drawn) == 4


def test_styles_tell_methods_apart():
    styles = [tuple(plots.style(name).values()) for name in methods.METHODS]
    assert len(set(styles)) == len(styles)
    lines = [style[:2] for style in styles]
    assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("module", [report, tables], ids=lambda m: m.__name__)
def test_doctests(module):
    found = doctest.testmod(module)
    assert found.failed == 0 and found.attempted > 0


def test_a_published_value_is_compared_with_the_intervals_of_both():
    # t(0.975, 4) = 2.776; the spread of five seeds is 0.21.
    np.testing.assert_allclose(published.half_width("resnet32x4:resnet8x4", "kd"), 2.7764 * 0.21 / 5**0.5, rtol=1e-4)
    assert published.half_width("resnet32x4:resnet8x4", "dkd") is None
    ours = {"mean": 0.74, "half": 0.003}
    assert tables.inside(ours, 74.4, 0.4) == "yes (both known)"
    assert tables.inside(ours, 74.4, None) == "no (ours alone)"
    assert tables.inside({"mean": 0.74, "half": None}, 74.4, None) == "n = 1"


def test_a_published_gain_is_compared_where_the_protocol_differs():
    results = collected(
        {"student": {0: 0.5, 1: 0.52}, "kd": {0: 0.52, 1: 0.5311}}
    )  # gains of 2 and 1.11, published 1.6
    assert row_of(results, "KD")[tables.INSIDE] == "yes (ours alone)"
    assert "Power: a difference from the student alone has a standard deviation of 0.63 points" in report.markdown(
        results
    )
