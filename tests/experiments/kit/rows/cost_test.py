"""FLOPs of programs with loops, which the compiler alone counts once."""

import jax
import jax.numpy as jnp
import pytest

from experiments.kit.rows import cost

X = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 8**3


def repeated(function, length):
    return lambda x: jax.lax.scan(lambda x, _: (function(x), None), x, length=length)[0]


def product(x):
    return x @ x


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "function, products",
    [
        (product, 1),
        (repeated(product, 10), 10),
        (jax.jit(repeated(repeated(product, 5), 3)), 15),
        (jax.checkpoint(lambda x: repeated(product, 10)(product(x))), 11),
        (lambda x: jax.lax.cond(x[0, 0] > 0, repeated(product, 10), lambda x: x, x), 10),
        (jax.grad(lambda x: repeated(product, 10)(x).sum()), 30),
    ],
    ids=["without a loop", "loop", "nested, jitted", "remat", "branch", "gradient"],
)
def test_bodies_count_as_often_as_they_run(function, products, compiled):
    found = cost.flops(function, X, compiled=compiled)
    assert found == pytest.approx(products * PRODUCT, rel=0.08)  # and additions, comparisons, counters
