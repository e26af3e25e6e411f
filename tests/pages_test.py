"""Pages of the documentation: every Python block runs, and every link leads somewhere."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxkd.cache import codecs
from tests import page_blocks

# Pages whose blocks take about a second; all other pages are in the slow tier.
QUICK = {"docs/guides/add-a-loss.md"}
CASES = [case for path in page_blocks.PAGES for case in page_blocks.cases_of(path)]
EVERYTHING = [*page_blocks.PAGES, *page_blocks.READMES]


def _parameter(number, case):
    marks = [] if case.page in QUICK else [pytest.mark.slow]
    page = case.page.removeprefix("docs/").removeprefix("guides/").removesuffix(".md")
    return pytest.param(case, marks=marks, id=f"{page}-{case.name}-{number}")


@pytest.mark.parametrize("case", [_parameter(i, case) for i, case in enumerate(CASES)])
def test_blocks_run(case, tmp_path, monkeypatch):
    for name in sorted(case.optional()):
        pytest.importorskip(name, reason=f"{case.page} needs {name} here")
    monkeypatch.chdir(tmp_path)
    PREPARE.get(case.page, lambda: None)()
    case.run()


def test_every_page_with_python_is_covered():
    """Each block runs in one case, is a script that a named test runs, or is marked as one that cannot run."""
    for path in page_blocks.PAGES:
        text, page = path.read_text(encoding="utf-8"), page_blocks.name_of(path)
        blocks = page_blocks.blocks_of(text)
        assert len(blocks) == len(re.findall(r"^ *```(?:python|py)\b", text, re.MULTILINE)), f"{page}: a fence differs"
        marks = {block.mark for block in blocks} - {"", "alone", "no-test"} - page_blocks.SCRIPTS.keys()
        assert not marks - {page_blocks.INDEPENDENT[5:-4]}, f"{page}: unknown marks {marks}"
        cases = [case for case in CASES if case.page == page]
        run = {b.line for case in cases for b in (*case.blocks, *([case.setup] if case.setup else []))}
        rest = [b for b in blocks if b.line not in run]
        assert all(b.mark == "no-test" or b.mark in page_blocks.SCRIPTS for b in rest), f"{page}: blocks do not run"


def test_blocks_that_never_run_name_what_they_need():
    for path in page_blocks.PAGES:
        for block in page_blocks.blocks_of(path.read_text(encoding="utf-8")):
            if block.mark == "no-test":
                known = any(name in block.code for name in page_blocks.UNAVAILABLE)
                assert known, f"{page_blocks.name_of(path)}, line {block.line}: it can run, or skip by OPTIONAL"


def test_scripts_of_pages_are_run_by_a_test():
    text = "".join(path.read_text(encoding="utf-8") for path in page_blocks.PAGES)
    for script, test in page_blocks.SCRIPTS.items():
        assert f"<!-- {script} -->\n```python" in text, f"no page has the script {script}"
        assert script.removesuffix(".py") in (page_blocks.ROOT / test).read_text(encoding="utf-8")


@pytest.mark.parametrize("path", page_blocks.PAGES, ids=page_blocks.name_of)
def test_blocks_are_valid_python(path):
    """Those that do not run included, so that none is cut or outdated in its syntax."""
    for block in page_blocks.blocks_of(path.read_text(encoding="utf-8")):
        compile("\n" * block.line + block.code, str(path), "exec")


@pytest.mark.parametrize("path", EVERYTHING, ids=page_blocks.name_of)
def test_relative_links_and_anchors_exist(path):
    assert page_blocks.broken(path) == []


def test_broken_links_are_found(tmp_path):
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# A title\n\n## Is it `here`?\n\n```python\n# no heading\n```\n", encoding="utf-8")
    page.write_text(
        "[a](other.md#is-it-here) [b](other.md#no-heading) [c](none.md) [d](https://x.y/none.md) ![e](e.png)\n"
        "```\n[f](in_code.md)\n```\n[g `[x]`](other.md#a-title) [h](#nowhere)\n",
        encoding="utf-8",
    )
    assert page_blocks.broken(page) == ["other.md#no-heading", "none.md", "e.png", "#nowhere"]


def test_the_size_of_each_codec_is_that_of_the_page():
    text = (page_blocks.ROOT / "docs/guides/caching.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\(.*?\))` \|[^|]*\| ([\d,]+) \|", text, re.MULTILINE)
    assert len(rows) >= 6
    for call, size in rows:
        codec = eval(call, vars(codecs))
        logits = jax.ShapeDtypeStruct((1, 1, 128_256), jnp.float32)
        keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
        fields = jax.eval_shape(codec.encode, logits, keys)
        assert sum(x.size * x.dtype.itemsize for x in fields.values()) == int(size.replace(",", "")), call


def _random_torch_resnet8():
    """Writes random weights under PyTorch's names, which the page on weights reads."""
    rng = np.random.default_rng(0)
    filters, shapes = (16, 16, 32, 64), {"fc.weight": (10, 64), "fc.bias": (10,)}
    shapes |= {"conv1.weight": (16, 3, 3, 3)} | _norm("bn1", 16)
    for stage, (before, after) in enumerate(itertools.pairwise(filters), start=1):
        name = f"layer{stage}.0"
        shapes |= {f"{name}.conv1.weight": (after, before, 3, 3), f"{name}.conv2.weight": (after, after, 3, 3)}
        shapes |= _norm(f"{name}.bn1", after) | _norm(f"{name}.bn2", after)
        if before != after:
            shapes |= {f"{name}.downsample.0.weight": (after, before, 1, 1)} | _norm(f"{name}.downsample.1", after)
    save_file({name: rng.random(shape) for name, shape in shapes.items()}, "torch_resnet8.safetensors")


def _norm(name, size):
    parts = {f"{name}.{part}": (size,) for part in ("weight", "bias", "running_mean", "running_var")}
    return parts | {f"{name}.num_batches_tracked": ()}


PREPARE = {"docs/guides/export.md": _random_torch_resnet8}
