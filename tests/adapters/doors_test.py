"""Wrong kinds of arguments at the doors of adapters and placements are named, with the cure."""

from typing import Any

import flax.linen as nn
import jax
import pytest
from flax import nnx

from jaxkd import adapters, parallel
from tests import tiny


class NnxNet(nnx.Module):
    pass


FUNCTIONS: list[Any] = [print, print, print]
PLACED = parallel.Placed(*FUNCTIONS)
CALLS: list[tuple[Any, Any, str]] = [
    (adapters.linen, [nn.Dense], r"adapters\.linen, module: .* got the class Dense, without its \(\)"),
    (adapters.linen, [NnxNet()], r"got the nnx module NnxNet: adapters\.nnx makes a Model of it"),
    (adapters.linen, [tiny.student], "got Model"),
    (adapters.nnx, [nn.Dense(3)], r"got the linen module Dense: adapters\.linen\(Dense\(\.\.\.\)\) makes"),
    (adapters.nnx, [3], r"adapters\.nnx, module: expected an nnx module or a function .* got int"),
    (adapters.plain, [None, print], r"adapters\.plain, init: expected a function, got NoneType"),
    (parallel.jit, [tiny.student], r"parallel\.jit: expected a Distiller.*got Model"),
    (parallel.pmap, [nn.Dense(3)], r"parallel\.pmap: expected a Distiller.*linen module Dense"),
    (parallel.shard, [print, None], r"parallel\.shard: expected a Distiller.*got builtin"),
    (
        parallel.shard,
        [PLACED, jax.devices()],
        r"shard, mesh: expected a Mesh, .* got list",
    ),
]


@pytest.mark.parametrize(("function", "arguments", "message"), CALLS, ids=[str(i) for i in range(len(CALLS))])
def test_a_wrong_kind_is_named(function, arguments, message):
    with pytest.raises(TypeError, match=message):
        function(*arguments)
