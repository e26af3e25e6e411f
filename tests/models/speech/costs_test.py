"""The sizes and costs of the acoustic models that docs/guides/models.md states."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from jaxkd import models

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "guides" / "models.md"
ROW = re.compile(
    r"^\| `(?P<name>\w+)`, (?P<layers>\d+) layers of (?P<width>\d+)(, (?P<directions>both|one) directions?)? "
    r"\| (?P<parameters>[\d,]+) \| (?P<flops>[\d.]+) \|$",
    re.MULTILINE,
)
ROWS = {f"{m['name']} {m['width']}": m for m in ROW.finditer(PAGE.read_text(encoding="utf-8"))}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_parameters_and_flops(name, monkeypatch):
    """The compiler counts the body of a loop once, so that the LSTM's loop is unrolled."""
    monkeypatch.setattr(jax.lax, "scan", functools.partial(jax.lax.scan, unroll=True))
    row = ROWS[name]
    options = {"bidirectional": row["directions"] == "both"} if row["directions"] else {}
    config = getattr(models, f"{row['name']}Config")(
        bands=40, labels=10, layers=int(row["layers"]), width=int(row["width"]), **options
    )
    graph, params = nnx.split(nnx.eval_shape(lambda: getattr(models, row["name"])(config, rngs=nnx.Rngs(0))))
    assert sum(x.size for x in jax.tree.leaves(params)) == int(row["parameters"].replace(",", ""))
    second = jax.ShapeDtypeStruct((1, 100, 40), jnp.float32)
    program = jax.jit(lambda params, x: nnx.merge(graph, params)(x)["logits"]).lower(params, second).compile()
    assert program.cost_analysis()["flops"] / 1e6 == pytest.approx(float(row["flops"]), rel=0.05)


def test_the_table_is_read():
    assert len(ROWS) == 6
