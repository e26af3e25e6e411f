"""Groups of channels of a network: the axes of its arrays that belong together.

The forward pass is traced to JAX's intermediate program. Each axis of each value in it is a node, and each operation
joins the nodes that must be pruned together: an addition those of its operands, a convolution the channels of its input
with the input axis of its kernel, and the output axis of the kernel with the channels of the result. Nodes that no rule
follows are fixed: those of the batch, of the logits, of a flattened map, of heads, of any unknown operation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import jax

from jaxkd._core import checks, tree_paths
from jaxkd.types import Batch, Model
from jaxkd.weights import _tree

_KINDS: Final = {
    "elementwise": """abs add and atan2 cbrt ceil clamp convert_element_type copy copy_p cos div eq erf erf_inv erfc exp
        exp2 expm1 floor ge gt integer_pow is_finite le log log1p logistic lt max min mul ne neg not or pow
        reduce_precision rem round rsqrt select_n sign sin sqrt square stop_gradient sub tan tanh xor""",
    "call": """pjit jit closed_call core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr remat remat2
        checkpoint""",
    "reduction": "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin",
    "window": """pad slice rev reduce_window reduce_window_sum reduce_window_max reduce_window_min dynamic_slice
        split""",
}
_KIND_OF: Final = {name: kind for kind, names in _KINDS.items() for name in names.split()}


class ChannelGroup(NamedTuple):
    """Channels of a network that are pruned together.

    Attributes:
      size: number of channels.
      axes: name and axis of each array that has these channels, such as ``("params/Conv_0/kernel", 3)``.
      filters: those of ``axes`` that compute the channels: the output axes of kernels.
    """

    size: int
    axes: tuple[tuple[str, int], ...]
    filters: tuple[tuple[str, int], ...]


def channel_groups(model: Model, source: Any, batch: Batch, *, output: str = "logits") -> dict[str, ChannelGroup]:
    """Finds the channels of a network that can be pruned, from its program.

    The channels of a residual stream are one group, with all convolutions, norms and statistics that have them; those
    within a block are another. The model may be of any library. Channels of the input and the output, and those that an
    operation mixes in a way that is not followed (a reshape into heads or groups, a flattened map, a concatenation, a
    loop), are in no group.

    Args:
      model: model from an adapter.
      source: its weights in any form that `flatten` takes.
      batch: a batch, or shapes of one.
      output: name of the output whose size stays.

    Returns:
      The groups in the order of the forward pass, by the name of their first kernel as in `flatten`.

    Raises:
      ValueError: the model has no such output.

    >>> import jax.numpy as jnp
    >>> from jaxkd import adapters
    >>> model = adapters.plain(
    ...     lambda key, x: {"up": jnp.ones((3, 5)), "down": jnp.ones((5, 2))},
    ...     lambda w, x: jnp.tanh(x @ w["up"]) @ w["down"],
    ...     inputs="x",
    ... )
    >>> batch = {"x": jnp.ones((4, 3))}
    >>> channel_groups(model, model.init(jax.random.key(0), batch), batch)["params/up"].axes
    (('params/down', 0), ('params/up', 1))
    """
    variables = _tree.student_of(source)
    collections = _tree.collections_of(variables)
    names = list(tree_paths.by_path(collections))

    def forward(collections: Any, batch: Any) -> Any:
        outputs, _ = model.apply(_tree.variables_of(collections, variables), batch, key=None, train=False)
        checks.known(output, checks.shapes(outputs), "channel_groups, output of the model")
        return outputs[output]

    shapes = jax.eval_shape(lambda *x: x, collections, dict(batch))
    program = jax.make_jaxpr(forward)(*shapes)
    arrays = program.in_avals[: len(names)]
    nodes = _Nodes()
    given = [nodes.new(len(x.shape)) for x in program.in_avals]
    for axes in given[len(names) :]:
        nodes.fix(axes)
    results = _follow(nodes, program.jaxpr, given, program.consts)
    nodes.fix(results[0])

    members: dict[int, list[tuple[str, int]]] = {}
    for name, axes in zip(names, given, strict=False):
        for axis, node in enumerate(axes):
            members.setdefault(nodes.root(node), []).append((name, axis))
    places = {node: (name, axis) for name, axes in zip(names, given, strict=False) for axis, node in enumerate(axes)}
    size_of = {name: x.shape for name, x in zip(names, arrays, strict=True)}
    filters: dict[int, list[tuple[str, int]]] = {}
    for node in nodes.filters:
        if node in places and places[node] not in filters.setdefault(nodes.root(node), []):
            filters[nodes.root(node)].append(places[node])
    found = {}
    for root, own in filters.items():
        if not nodes.fixed(root):
            name, axis = own[0]
            found[name] = ChannelGroup(size_of[name][axis], tuple(members[root]), tuple(own))
    return found


class _Nodes:
    """Axes of values, joined to sets (a union-find)."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._fixed: set[int] = set()
        self.filters: list[int] = []

    def new(self, count: int) -> list[int]:
        """Returns new nodes."""
        first = len(self._parents)
        self._parents.extend(range(first, first + count))
        return list(range(first, first + count))

    def root(self, node: int) -> int:
        """Returns the node that stands for a set."""
        while self._parents[node] != node:
            node = self._parents[node]
        return node

    def join(self, a: int, b: int) -> None:
        """Joins the sets of two nodes."""
        a, b = self.root(a), self.root(b)
        self._parents[max(a, b)] = min(a, b)
        if max(a, b) in self._fixed:
            self._fixed.add(min(a, b))

    def fix(self, nodes: Sequence[int]) -> None:
        """Excludes the sets of nodes from pruning."""
        self._fixed.update(self.root(node) for node in nodes)

    def fixed(self, node: int) -> bool:
        """Returns whether a node's set is excluded from pruning."""
        return self.root(node) in self._fixed


def _follow(nodes: _Nodes, program: Any, given: Sequence[list[int]], constants: Sequence[Any]) -> list[list[int]]:
    """Returns the nodes of a program's results."""
    known: dict[Any, list[int]] = dict(zip(program.invars, given, strict=True))
    for variable, _ in zip(program.constvars, constants, strict=True):
        known[variable] = nodes.new(len(variable.aval.shape))
        nodes.fix(known[variable])

    def read(x: Any) -> list[int]:
        if hasattr(x, "val"):  # a literal
            return nodes.new(len(x.aval.shape))
        return known[x]

    for equation in program.eqns:
        inputs = [read(x) for x in equation.invars]
        results = _operation(nodes, equation, inputs)
        known.update(zip(equation.outvars, results, strict=True))
    return [read(x) for x in program.outvars]


def _operation(nodes: _Nodes, equation: Any, inputs: list[list[int]]) -> list[list[int]]:
    name, options = equation.primitive.name, equation.params
    kind = _KIND_OF.get(name)
    shapes = [x.aval.shape for x in equation.invars]
    outputs = [x.aval.shape for x in equation.outvars]
    if kind == "call" and (inner := _inner(options, len(inputs))) is not None:
        return _follow(nodes, getattr(inner, "jaxpr", inner), inputs, getattr(inner, "consts", ()))
    if kind == "elementwise":
        return [_same(nodes, inputs, shapes, outputs[0])]
    if kind == "reduction":
        return [[node for axis, node in enumerate(inputs[0]) if axis not in options["axes"]] for _ in outputs]
    if name == "transpose":
        return [[inputs[0][axis] for axis in options["permutation"]]]
    if name == "squeeze":
        return [[node for axis, node in enumerate(inputs[0]) if axis not in options["dimensions"]]]
    if name == "broadcast_in_dim":
        return [_broadcast(nodes, inputs[0], shapes[0], outputs[0], options["broadcast_dimensions"])]
    if name == "reshape":
        return [_reshape(nodes, inputs[0], shapes[0], outputs[0])]
    if name == "dot_general":
        return [_product(nodes, inputs, options["dimension_numbers"])]
    if name == "conv_general_dilated" and options["batch_group_count"] == 1:
        return [_convolution(nodes, inputs, shapes, options)]
    if kind == "window":
        return [_resized(nodes, inputs[0], shapes[0], shape) for shape in outputs]
    if name == "concatenate":
        return [_joined(nodes, inputs, options["dimension"])]
    for axes in inputs:
        nodes.fix(axes)
    return [_fixed(nodes, len(shape)) for shape in outputs]


def _inner(options: Mapping[str, Any], count: int) -> Any:
    """Returns the program that an operation calls with its own arguments, or None."""
    for x in options.values():
        inner = getattr(x, "jaxpr", x)
        if hasattr(inner, "eqns") and len(inner.invars) == count:
            return x
    return None


def _same(nodes: _Nodes, inputs: Sequence[list[int]], shapes: Sequence[Any], result: Any) -> list[int]:
    """Joins the axes of arrays that are added, say; those of size 1 are broadcast."""
    made = []
    for axis, size in enumerate(result):
        alike = [own[axis] for own, shape in zip(inputs, shapes, strict=True) if shape and shape[axis] == size]
        for other in alike[1:]:
            nodes.join(alike[0], other)
        made += alike[:1] or nodes.new(1)
    return made


def _fixed(nodes: _Nodes, count: int) -> list[int]:
    made = nodes.new(count)
    nodes.fix(made)
    return made


def _broadcast(nodes: _Nodes, axes: list[int], old: Any, new: Any, places: Sequence[int]) -> list[int]:
    made = nodes.new(len(new))
    for axis, place in enumerate(places):
        if old[axis] == new[place]:
            made[place] = axes[axis]
    return made


def _reshape(nodes: _Nodes, axes: list[int], old: Any, new: Any) -> list[int]:
    """Keeps the axes that a reshape leaves as they are; axes of size 1 come and go."""
    made = nodes.new(len(new))
    sources, targets = ([i for i, n in enumerate(shape) if n != 1] for shape in (old, new))
    if 0 in old:
        nodes.fix([*axes, *made])
        return made
    while sources:
        i = j = 1
        while (x := math.prod(old[k] for k in sources[:i])) != (y := math.prod(new[k] for k in targets[:j])):
            i, j = (i + 1, j) if x < y else (i, j + 1)
        if i == j == 1:
            made[targets[0]] = axes[sources[0]]
        else:
            nodes.fix([axes[k] for k in sources[:i]] + [made[k] for k in targets[:j]])
        sources, targets = sources[i:], targets[j:]
    return made


def _product(nodes: _Nodes, inputs: Sequence[list[int]], numbers: Any) -> list[int]:
    (left, right), (left_batch, right_batch) = numbers
    a, b = inputs
    for i, j in (*zip(left, right, strict=True), *zip(left_batch, right_batch, strict=True)):
        nodes.join(a[i], b[j])
    free = [
        [node for axis, node in enumerate(axes) if axis not in used]
        for axes, used in ((a, {*left, *left_batch}), (b, {*right, *right_batch}))
    ]
    nodes.filters += [*free[0], *free[1]]
    return [*(a[i] for i in left_batch), *free[0], *free[1]]


def _convolution(nodes: _Nodes, inputs: Sequence[list[int]], shapes: Sequence[Any], options: Mapping[str, Any]) -> Any:
    x, kernel = inputs
    numbers, groups = options["dimension_numbers"], options["feature_group_count"]
    result = nodes.new(len(x))
    result[numbers.out_spec[0]] = x[numbers.lhs_spec[0]]
    channels, (produced, consumed, *spatial) = x[numbers.lhs_spec[1]], [kernel[i] for i in numbers.rhs_spec]
    result[numbers.out_spec[1]] = produced
    nodes.fix(spatial)
    if groups == 1:
        nodes.join(channels, consumed)
        nodes.filters.append(produced)
    elif groups == shapes[0][numbers.lhs_spec[1]] == shapes[1][numbers.rhs_spec[0]]:  # depthwise
        nodes.join(channels, produced)
    else:
        nodes.fix([channels, produced, consumed])
    return result


def _resized(nodes: _Nodes, axes: list[int], old: Any, new: Any) -> list[int]:
    """Keeps the axes of unchanged size."""
    made = nodes.new(len(new))
    for axis, node in enumerate(axes):
        if old[axis] == new[axis]:
            made[axis] = node
        else:
            nodes.fix([node, made[axis]])
    return made


def _joined(nodes: _Nodes, inputs: Sequence[list[int]], place: int) -> list[int]:
    """Follows a concatenation, whose own axis is fixed."""
    nodes.fix([axes[place] for axes in inputs])
    for axes in inputs[1:]:
        for axis, node in enumerate(axes):
            if axis != place:
                nodes.join(inputs[0][axis], node)
    return inputs[0]
