"""The tables of pages are those of the committed results, and fit a page."""

import functools
import pathlib
import re

import pytest

import jaxkd
from experiments.tables import cells, choice, committed, overview, pages, speed
from experiments.tables.main import TABLES, cli

PAGES = pages.pages()
ONE = pages.ROOT / "docs" / "one.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(pages.ROOT)))
def test_the_tables_of_a_page_are_those_of_the_committed_results(page):
    text = page.read_text(encoding="utf-8")
    name = page.relative_to(pages.ROOT)
    assert pages.filled(text, page, TABLES) == text, (
        f"{name} differs from the committed results. To write its tables: {pages.COMMAND}"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(pages.ROOT)))
def test_no_table_with_intervals_is_written_by_hand(page):
    by_hand = pages.without_blocks(page.read_text(encoding="utf-8")).splitlines()
    assert [line for line in by_hand if line.startswith("|") and re.search(r"± \d+\.\d", line)] == []


def test_the_links_of_tables_lead_to_files():
    for page in PAGES:
        for block in pages.BLOCK.finditer(page.read_text(encoding="utf-8")):
            for target in re.findall(r"\]\(([^)#]+)\)", block["body"]):
                assert target.startswith("https://") or (page.parent / target).exists(), f"{page}: {target}"


def test_a_block_is_filled_and_the_rest_is_left_as_it_is():
    text = "before\n\n<!-- table: sums of=1,2 -->\nold\n<!-- end -->\n\nafter\n"
    tables = {"sums": lambda page, of: f"| {sum(map(int, of.split(',')))} |"}
    filled = pages.filled(text, ONE, tables)
    assert filled == "before\n\n<!-- table: sums of=1,2 -->\n\n| 3 |\n\n<!-- end -->\n\nafter\n"
    assert pages.filled(filled, ONE, tables) == filled
    assert pages.without_blocks(filled) == "before\n\n\n\nafter\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<!-- table: results -->\nno end\n", "expected an `<!-- end -->`"),
        ("<!-- table: reslts -->\n<!-- end -->\n", "expected a table of"),
        ("<!-- table: results of=all -->\n<!-- end -->\n", "cannot be made"),
        ("<!-- table: task results=classification/none -->\n<!-- end -->\n", "cannot be made"),
        ("<!-- table: task results=classification/deit columns=none -->\n<!-- end -->\n", "cannot be made"),
    ],
)
def test_a_block_that_cannot_be_made_is_an_error_that_names_the_page(text, told):
    with pytest.raises(ValueError, match=re.escape(told)) as raised:
        pages.filled(text, ONE, TABLES)
    assert str(ONE) in str(raised.value)


def test_the_command_names_a_page_that_differs_and_mends_it(monkeypatch, tmp_path, capsys):
    page = tmp_path / "README.md"
    page.write_text("<!-- table: digits columns=0,1 -->\n\n| wrong |\n\n<!-- end -->\n", encoding="utf-8")
    monkeypatch.setattr(pages, "pages", lambda: [page])
    monkeypatch.setattr(pages, "ROOT", pathlib.Path(tmp_path))
    assert cli(["--check"]) == 1
    assert "README.md: differs" in (told := capsys.readouterr().out)
    assert pages.COMMAND in told
    assert cli([]) == 0
    assert "soft targets" in page.read_text(encoding="utf-8")
    assert cli(["--check"]) == 0


def test_numbers_have_an_interval_or_say_that_they_are_of_one_seed():
    three = {"mean": -0.0123, "half": 0.0456}
    assert cells.text(three, 100, 1, sign=True) == "-1.2 ± 4.6"
    assert cells.text({"mean": 0.5, "half": None}, 100) == "50.0 (1 seed)"
    assert cells.text(None) == "–"
    assert cells.text({"mean": None, "half": None}) == "not finite"
    assert cells.table(("a", "b"), [("x-1", "-1.2 ± 4.6")]).endswith("| x-1 | −1.2 ± 4.6 |")
    with pytest.raises(ValueError, match="at most 7 columns"):
        cells.table("abcdefgh", [])


def summary(mean, half, seeds=3):
    return {"mean": mean, "half": half, "seeds": list(range(seeds))}


@pytest.mark.parametrize(
    ("gain", "higher", "best", "rest"),
    [
        (summary(0.05, 0.01), True, "KD", "–"),
        (summary(0.05, 0.06), True, "none", "KD"),
        (summary(-0.05, 0.01), True, "none", "KD (worse)"),
        (summary(-0.05, 0.01), False, "KD", "–"),
        (summary(0.05, 0.01), False, "none", "KD (worse)"),
        (summary(0.05, 0.01, seeds=2), True, "–", "–"),
        (summary(0.05, None, seeds=1), True, "–", "–"),
    ],
)
def test_a_method_helps_if_the_interval_of_its_gain_excludes_zero(gain, higher, best, rest):
    method = overview.Compared("kd", "KD", summary(0.5, 0.1), gain)
    measure = overview.POINTS._replace(higher=higher)
    result = overview.Result("one", "field/one", pages.ROOT / "experiments", measure, [method])
    line = dict(zip(overview.HEAD, overview.line(result, ONE), strict=True))
    assert (line["best method"], line["did not help"]) == (best, rest)
    few = len(gain["seeds"]) < 3
    assert (line["gain, equal steps"] == cells.FEW) == few
    assert line["seeds"] == str(len(gain["seeds"]))


def test_the_best_method_has_the_largest_gain_of_those_that_help():
    gains = {"a": summary(0.05, 0.01), "b": summary(0.09, 0.01), "c": summary(0.2, 0.3), "d": summary(0.3, 0.1, 1)}
    methods = [overview.Compared(name, name, summary(0.5, 0.1), gain) for name, gain in gains.items()]
    result = overview.Result("one", "field/one", pages.ROOT / "experiments", overview.POINTS, methods)
    line = overview.line(result, ONE)
    assert line[2:5] == ("b", "+9.0 ± 1.0", "–")
    assert line[6] == "c; d (not enough seeds)"


def test_every_committed_result_is_on_the_overview():
    text = (pages.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for name in committed.names():
        assert f"/{committed.folder(name).relative_to(pages.ROOT).as_posix()}/report.md" in text, name


def resolve(name):
    return functools.reduce(getattr, name.split("."), jaxkd)


@pytest.mark.parametrize("key", choice.methods())
def test_a_row_of_which_method_names_what_there_is(key):
    row = choice.methods()[key]
    resolve(row["name"])
    assert "cost" not in row or row["cost"] in choice.costs()
    assert choice.weight(row)
    assert row["section"] in ("logits", "features", "relations", "language", "dense", "alone")
    assert "memory" not in row or row["memory"] in {one["loss"] for one in speed.rows_of("memory")}


def test_every_method_whose_cost_was_measured_is_a_row():
    known = {row.get("cost") for row in choice.methods().values()}
    assert set(choice.costs()) - known - {"student", "crd_kd", "darkrank_hard"} == set()
