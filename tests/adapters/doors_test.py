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
    (adapters.linen, [nn.Dense], r"linen, module: expected an instance .* got the class Dense"),
    (adapters.linen, [NnxNet()], r"linen, module: .* got a NnxNet.*adapters\.nnx"),
    (adapters.linen, [tiny.student], "got a Model"),
    (adapters.nnx, [nn.Dense(3)], r"nnx, module: .* got a Dense.*adapters\.linen"),
    (adapters.nnx, [3], r"nnx, module: expected an nnx\.Module or a function .* got 3"),
    (adapters.plain, [None, print], r"plain, init: expected a function, got None"),
    (parallel.jit, [tiny.student], r"parallel\.jit, kd: expected a Distiller, got a Model"),
    (parallel.pmap, [nn.Dense(3)], r"parallel\.pmap, kd: expected a Distiller, got a Dense"),
    (parallel.shard, [print, None], r"parallel\.shard, kd: expected a Distiller, got the function print"),
    (parallel.shard, [PLACED, jax.devices()], r"shard, mesh: expected a Mesh, .* got a list"),
]


@pytest.mark.parametrize(("function", "arguments", "message"), CALLS, ids=[str(i) for i in range(len(CALLS))])
def test_a_wrong_kind_is_named(function, arguments, message):
    with pytest.raises(TypeError, match=message):
        function(*arguments)
