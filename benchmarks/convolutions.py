"""CPU time of the forward and backward passes of resnet8's layers, by operation.

Run ``python -m benchmarks.convolutions``. For each convolution of resnet8, BatchNorm and ReLU, the forward pass and the
gradient by each argument are compiled as programs of their own. The gradient by the kernel is also written in other
ways that return equal results up to rounding: as the convolution of another layout, and as products of matrices of
shifted images. The programs take turns in one process, and the time is that of all processors together, so that other
load of the machine affects it little. The share of a step is the sum over the layers of the network.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro
from jax import Array
from rich.table import Table

from benchmarks.common import command, report, seconds_in_turn


class Layer(NamedTuple):
    """A convolution of resnet8.

    Attributes:
      size: height and width of the input.
      channels: input channels.
      features: output channels.
      window: height and width of the kernel.
      stride: stride in both directions.
      layers: number of such layers in the network.
    """

    size: int
    channels: int
    features: int
    window: int = 3
    stride: int = 1
    layers: int = 1


LAYERS = (
    Layer(32, 3, 16),
    Layer(32, 16, 16, layers=2),
    Layer(32, 16, 32, stride=2),
    Layer(16, 32, 32),
    Layer(32, 16, 32, window=1, stride=2),
    Layer(16, 32, 64, stride=2),
    Layer(8, 64, 64),
    Layer(16, 32, 64, window=1, stride=2),
)
#: size, channels and number of the network's maps that BatchNorm or ReLU reads
MAPS = ((32, 16, 3), (16, 32, 3), (8, 64, 3))


def convolution(x: Array, kernel: Array, stride: int = 1, padding: int | None = None) -> Array:
    """Returns the convolution as the networks of `jaxkd.models` compute it."""
    around = (kernel.shape[0] // 2 if padding is None else padding,) * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), (around, around), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def by_input(x: Array, kernel: Array, cotangent: Array, stride: int = 1) -> Array:
    return jax.vjp(lambda x: convolution(x, kernel, stride), x)[1](cotangent)[0]


def by_kernel(x: Array, kernel: Array, cotangent: Array, stride: int = 1) -> Array:
    return jax.vjp(lambda kernel: convolution(x, kernel, stride), kernel)[1](cotangent)[0]


def after_a_barrier(x: Array, kernel: Array, cotangent: Array, stride: int = 1) -> Array:
    x, cotangent = jax.lax.optimization_barrier((x, cotangent))
    return by_kernel(x, kernel, cotangent, stride)


def another_layout(x: Array, kernel: Array, cotangent: Array) -> Array:
    """Transposes both operands to the layout of a forward convolution: examples are its channels."""
    x, cotangent = jax.lax.optimization_barrier((x.transpose(3, 1, 2, 0), cotangent.transpose(1, 2, 0, 3)))
    return convolution(x, cotangent, padding=1).transpose(1, 2, 0, 3)


def shifted(x: Array, size: int) -> list[Array]:
    """Returns the nine shifts of padded images."""
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, row : row + size, column : column + size] for row in range(3) for column in range(3)]


def product_of_columns(x: Array, kernel: Array, cotangent: Array) -> Array:
    columns = jnp.concatenate(shifted(x, x.shape[1]), -1)
    return jnp.einsum("nhwi,nhwo->io", columns, cotangent).reshape(kernel.shape)


def products_of_shifts(x: Array, kernel: Array, cotangent: Array) -> Array:
    each = [jnp.einsum("nhwi,nhwo->nio", part, cotangent).sum(0) for part in shifted(x, x.shape[1])]
    return jnp.stack(each).reshape(kernel.shape)


def square_products(x: Array, kernel: Array, cotangent: Array) -> Array:
    """Shifts the images along one axis and the cotangent along the other: the products are square."""
    size, padded = x.shape[1], jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = jnp.concatenate([padded[:, row : row + size] for row in range(3)], -1)
    columns = [jnp.pad(cotangent, ((0, 0), (0, 0), (column, 2 - column), (0, 0))) for column in range(3)]
    product = jnp.einsum("nhwi,nhwo->nio", rows, jnp.concatenate(columns, -1)).sum(0)
    return product.reshape(3, kernel.shape[2], 3, kernel.shape[3]).transpose(0, 2, 1, 3)


#: other ways to the gradient by the kernel, for a window of 3 and a stride of 1
OTHER_WAYS: dict[str, Callable[..., Array]] = {
    "another layout": another_layout,
    "product of columns": product_of_columns,
    "products of shifts": products_of_shifts,
    "square products": square_products,
}


def batch_norm(x: Array, scale: Array, bias: Array) -> Array:
    mean, square = (each.mean((0, 1, 2), keepdims=True) for each in (x, x**2))
    return (x - mean) * (jax.lax.rsqrt(square - mean**2 + 1e-5) * scale) + bias


def milliseconds(sides: dict[str, Callable[[], Any]], rounds: int, repeats: int) -> dict[str, float]:
    def repeated(run: Callable[[], Any]) -> Any:
        return [run() for _ in range(repeats)][-1]

    turns = {name: functools.partial(repeated, run) for name, run in sides.items()}
    seconds = seconds_in_turn(turns, rounds, time.process_time)
    return {name: 1e3 * statistics.median(values) / repeats for name, values in seconds.items()}


def normal(*shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape), jnp.float32)


def programs(functions: dict[str, Callable[..., Any]], *arrays: Array) -> dict[str, Callable[[], Any]]:
    return {
        name: functools.partial(jax.jit(function).lower(*arrays).compile(), *arrays)
        for name, function in functions.items()
    }


def of_convolution(layer: Layer, batch: int, rounds: int, repeats: int) -> dict[str, Any]:
    """Returns the row of a convolution."""
    x, kernel = normal(batch, layer.size, layer.size, layer.channels), normal(*(layer.window,) * 2, *layer[1:3]) / 10
    size = layer.size // layer.stride
    cotangent = normal(batch, size, size, layer.features)
    functions: dict[str, Callable[..., Any]] = {
        "forward": lambda x, kernel, _: convolution(x, kernel, layer.stride),
        "by input": functools.partial(by_input, stride=layer.stride),
        "by kernel": functools.partial(by_kernel, stride=layer.stride),
        "after a barrier": functools.partial(after_a_barrier, stride=layer.stride),
    }
    others = OTHER_WAYS if layer.window == 3 and layer.stride == 1 else {}
    sides = programs(functions | others, x, kernel, cotangent)
    expected = sides["by kernel"]()
    gaps = [jnp.max(jnp.abs(sides[name]() - expected)) for name in ("after a barrier", *others)]
    return {
        "layer": f"convolution {layer.window} × {layer.window}, {layer.size} × {layer.size} × {layer.channels} to "
        f"{size} × {size} × {layer.features}",
        "count": layer.layers,
        "gflop": 2e-9 * batch * size**2 * layer.window**2 * layer.channels * layer.features,
        "milliseconds": milliseconds(sides, rounds, repeats),
        "difference": float(max(gaps) / jnp.max(jnp.abs(expected))),
    }


def of_map(size: int, channels: int, count: int, batch: int, rounds: int, repeats: int) -> list[dict[str, Any]]:
    """Returns the rows of BatchNorm and of ReLU for a map."""
    x, cotangent = normal(batch, size, size, channels), normal(batch, size, size, channels)[::-1]
    scale, rows = jnp.ones((1, 1, 1, channels)), []
    for name, function in (("BatchNorm", lambda x: batch_norm(x, scale, scale)), ("ReLU", jax.nn.relu)):

        def backward(x: Array, cotangent: Array, function: Callable[..., Any] = function) -> Array:
            return jax.vjp(function, x)[1](cotangent)[0]

        def forward(x: Array, _: Array, function: Callable[..., Any] = function) -> Array:
            return function(x)  # type: ignore[no-any-return]

        sides = programs({"forward": forward, "by input": backward}, x, cotangent)
        times = milliseconds(sides, rounds, repeats)
        rows.append({"layer": f"{name}, {size} × {size} × {channels}", "count": count, "milliseconds": times})
    return rows


def main(
    batch: int = 64,
    rounds: Annotated[int, tyro.conf.arg(help="number of timed rounds")] = 9,
    repeats: Annotated[int, tyro.conf.arg(help="calls of a program per round")] = 2,
    layers: Annotated[int, tyro.conf.arg(help="number of layers to measure, from the first")] = len(LAYERS),
    out: Annotated[Path | None, tyro.conf.arg(help="JSON file to write the results to")] = None,
) -> None:
    """Measures forward and backward passes of resnet8's layers, and other ways to the kernel's gradient."""
    rows = [of_convolution(layer, batch, rounds, repeats) for layer in LAYERS[:layers]]
    for each in MAPS[:layers]:
        rows += of_map(*each, batch, rounds, repeats)
    names = ("forward", "by input", "by kernel", "after a barrier", *OTHER_WAYS)
    table = Table(title=f"ms of all processors together, batch {batch}", title_justify="left")
    for column in ("layer", "count", *names):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for row in rows:
        times = row["milliseconds"]
        table.add_row(row["layer"], str(row["count"]), *(f"{times[n]:.2f}" if n in times else "" for n in names))
    totals = {name: sum(row["count"] * row["milliseconds"].get(name, 0.0) for row in rows) for name in names[:3]}
    table.add_row("all layers of the network", "", *(f"{totals[name]:.1f}" for name in names[:3]))
    rich.print(table)
    report([*rows, {"layer": "all", "milliseconds": totals}], out)


if __name__ == "__main__":
    command(main)
