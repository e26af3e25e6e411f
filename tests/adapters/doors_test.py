"""Wrong kinds of arguments at the doors of adapters and placements are named, with the cure."""

import flax.linen as nn
import jax
import pytest
from flax import nnx

from jaxkd import adapters, parallel
from tests import tiny


class NnxNet(nnx.Module):
    pass


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: adapters.linen(nn.Dense), r"adapters\.linen, module: .* got the class Dense, without its \(\)"),
        (lambda: adapters.linen(NnxNet()), r"got the nnx module NnxNet: adapters\.nnx makes a Model of it"),
        (lambda: adapters.linen(tiny.student), "got Model"),
        (lambda: adapters.nnx(nn.Dense(3)), r"got the linen module Dense: adapters\.linen\(Dense\(\.\.\.\)\) makes a Model"),
        (lambda: adapters.nnx(3), r"adapters\.nnx, module: expected an nnx module or a function .* got int"),
        (lambda: adapters.plain(None, lambda w, x: x), r"adapters\.plain, init: expected a function, got NoneType"),
        (lambda: parallel.jit(tiny.student), r"parallel\.jit: expected a Distiller.*got Model"),
        (lambda: parallel.pmap(nn.Dense(3)), r"parallel\.pmap: expected a Distiller.*linen module Dense"),
        (lambda: parallel.shard(print, None), r"parallel\.shard: expected a Distiller.*got builtin"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_kind_is_named(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_a_mesh_is_expected_where_a_mesh_is():
    kd = parallel.Placed(*(lambda *args: None for _ in range(3)))
    with pytest.raises(TypeError, match=r"shard, mesh: expected a Mesh, as from jax\.make_mesh.*got list"):
        parallel.shard(kd, list(jax.devices()))
