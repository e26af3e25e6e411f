"""docs/guides/caching.md: its Python blocks run in order, and its sizes are those of the codecs."""

import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

from jaxkd.cache import codecs

TEXT = (pathlib.Path(__file__).parents[1] / "docs" / "guides" / "caching.md").read_text(encoding="utf-8")


def test_blocks_run():
    namespace = {}
    for block in re.findall(r"^```python\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE):
        exec(compile(block, "docs/guides/caching.md", "exec"), namespace)
    assert "drawn" in namespace


@pytest.mark.parametrize(("call", "size"), re.findall(r"^\| `(\w+\(.*?\))` \|[^|]*\| ([\d,]+) \|", TEXT, re.MULTILINE))
def test_sizes(call, size):
    codec = eval(call, vars(codecs))
    logits = jax.ShapeDtypeStruct((1, 1, 128_256), jnp.float32)
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    fields = jax.eval_shape(codec.encode, logits, keys)
    assert sum(x.size * x.dtype.itemsize for x in fields.values()) == int(size.replace(",", ""))
