"""Canonical text of a traced function, by which a run recognizes what it computes.

The text has one line for each equation of the jaxpr. Arguments are named by their paths, results by numbers. Constants
that fit in a line are written out and others stand with their digests, so that the text covers the values of arrays
that the function closes over. What does not change a number is left out: names of compiled functions, placement on
devices, addresses. Calls of compiled functions are expanded where they stand, so that a `jax.jit` within a step leaves
no trace.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd._core import digests, tree_paths

_CALLS = {"jit", "pjit", "closed_call", "core_call"}
_DEVICES = {"xla_pmap", "shard_map", "sharding_constraint", "mesh_cast", "reshard"}
_IGNORED = {
    "name", "in_shardings", "out_shardings", "in_layouts", "out_layouts", "donated_invars", "donated", "ctx_mesh",
    "keep_unused", "inline", "compiler_options_kvs", "sharding", "out_sharding", "dst_sharding", "layout", "mesh",
    "devices", "backend", "jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk", "bwd", "unconstrained_dims",
    "debug_info", "policy",
}  # fmt: skip
_WRITTEN_OUT = 8  # elements of the largest constant that is written out
_DECLARATION = re.compile(r"[^%\s]\S*: \S+")
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Program(NamedTuple):
    """Text of a traced function.

    Attributes:
      lines: equations in order.
      sources: for each line, the file, line and function that made it; None where it is not known.
      places: True if the text depends on the number of devices, because a part of the function is mapped over them.
    """

    lines: tuple[str, ...]
    sources: Callable[[int], str | None]
    places: bool

    @property
    def text(self) -> str:
        """All lines as one string."""
        return "\n".join(self.lines)

    @property
    def digest(self) -> str:
        """Digest of the text, 32 hexadecimal digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:32]


def trace(function: Callable[..., Any], **arguments: Any) -> Program:
    """Traces a function of positional arguments and returns its program.

    The arguments' names stand in the text; their values are not read.

    >>> found = trace(lambda x: x / 4.0, x=jax.ShapeDtypeStruct((2,), "float32"))
    >>> found.lines
    ('x: float32[2]', '%0: float32[2] = div x 4.0', 'return %0')
    >>> found.digest == trace(jax.jit(lambda x: x / 4.0), x=np.ones(2, "float32")).digest
    True
    """
    shapes = jax.tree.map(_shape, tuple(arguments.values()))
    try:  # of shapes and not of arrays: the programs that call the function find its trace by the arguments' types
        closed, result = jax.make_jaxpr(function, return_shape=True)(*shapes)
    except Exception:  # a function that needs the placement of its arguments
        closed, result = jax.make_jaxpr(function, return_shape=True)(*arguments.values())
    named = [
        "/".join((name, *path)) for name, value in arguments.items() for path in tree_paths.by_parts(value)
    ]  # fmt: skip
    writer = _Writer()
    outputs = writer.expand(closed.jaxpr, closed.consts, [_Argument(name) for name in named])
    for path, output in zip(tree_paths.by_parts(result), outputs, strict=True):
        writer.add(" ".join(("return", "/".join(path), writer.use(output))).replace("return  ", "return "), None)
    return Program(tuple(writer.lines), writer.source, writer.places)


def first_difference(stored: str, given: Program) -> str:
    """Returns the first equation in which a stored text and a program differ.

    >>> program = trace(lambda x: x / 4.0, x=jax.ShapeDtypeStruct((2,), "float32"))
    >>> first_difference(program.text.replace("4.0", "2.0"), program).replace(program.sources(1) or "", "HERE")
    "equation 1, from HERE: stored '%0: float32[2] = div x 2.0', given '%0: float32[2] = div x 4.0'"
    """
    # The lines that declare the arguments differ too, and say less.
    old = [line for line in stored.split("\n") if not _DECLARATION.fullmatch(line)]
    new = [(number, line) for number, line in enumerate(given.lines) if not _DECLARATION.fullmatch(line)]
    pairs = enumerate(zip(old, new, strict=False))
    first = next((i for i, (one, (_, other)) in pairs if one != other), min(len(old), len(new)))
    before = repr(_shorten(old[first])) if first < len(old) else "nothing"
    now, source = (repr(_shorten(new[first][1])), given.sources(new[first][0])) if first < len(new) else ("nothing", "")
    return f"equation {first + 1}{f', from {source}' if source else ''}: stored {before}, given {now}"


class _Argument(NamedTuple):
    """An argument of the function, whose type is written where it is first used."""

    name: str


class _Writer:
    """Lines of a program, written equation by equation."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.places = False
        self._equations: list[Any] = []
        self._count = 0
        self._types: dict[str, str] = {}
        self._constants: dict[int, tuple[Any, str]] = {}

    def add(self, line: str, equation: Any) -> None:
        self.lines.append(line)
        self._equations.append(equation)

    def source(self, number: int) -> str | None:
        """Returns the innermost place outside of JAX where an equation was made."""
        traceback = getattr(getattr(self._equations[number], "source_info", None), "traceback", None)
        for frame in getattr(traceback, "frames", ()):
            if not re.search(r"[/\\]jax(lib)?[/\\]", frame.file_name):
                file = "/".join(re.split(r"[/\\]", frame.file_name)[-3:])
                return f"{file}:{frame.line_num} ({frame.function_name.rpartition('.')[2]})"
        return None

    def use(self, value: Any) -> str:
        """Returns the text of a value; an argument's type is written before its first use."""
        if not isinstance(value, _Argument):
            return str(value)
        if kind := self._types.pop(value.name, None):
            self.add(f"{value.name}: {kind}", None)
        return value.name

    def expand(self, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
        """Writes the equations of a jaxpr and returns the texts of its results."""
        known: dict[Any, Any] = {}
        for variable, argument in zip(jaxpr.invars, arguments, strict=True):
            known[variable] = argument
            if isinstance(argument, _Argument):
                self._types.setdefault(argument.name, _type(variable.aval))
        for variable, constant in zip(jaxpr.constvars, constants, strict=True):
            known[variable] = self._constant(constant)

        def read(atom: Any) -> Any:
            return self._constant(atom.val) if hasattr(atom, "val") else known[atom]

        for equation in jaxpr.eqns:
            name, inputs = equation.primitive.name, [read(atom) for atom in equation.invars]
            inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
            if name in _CALLS and inner is not None and len(_open(inner).invars) == len(inputs):
                known.update(zip(equation.outvars, self.expand(_open(inner), _consts(inner), inputs), strict=True))
                continue
            self.places = self.places or name in _DEVICES
            used = " ".join(map(self.use, inputs))
            parameters = "".join(
                f" {key}={text}" for key, text in self._parameters(equation.params) if text not in ("None", "()")
            )
            results = [f"%{self._count + i}" for i in range(len(equation.outvars))]
            self._count += len(results)
            known.update(zip(equation.outvars, results, strict=True))
            typed = ", ".join(f"{r}: {_type(v.aval)}" for r, v in zip(results, equation.outvars, strict=True))
            self.add(f"{typed} = {name} {used}{parameters}".rstrip(), equation)
            for key, value in _parts(equation.params):
                self._block(key, value)
        return [read(atom) for atom in jaxpr.outvars]

    def _block(self, key: str, inner: Any) -> None:
        """Writes a jaxpr that belongs to the equation before, such as the body of a scan."""
        jaxpr = _open(inner)
        consts = _consts(inner)
        arguments = [f"%{self._count + i}" for i in range(len(jaxpr.invars))]
        self._count += len(arguments)
        typed = ", ".join(f"{a}: {_type(v.aval)}" for a, v in zip(arguments, jaxpr.invars, strict=True))
        self.add(f"begin {key} {typed}".rstrip(), None)
        if len(consts) != len(jaxpr.constvars):  # an open jaxpr, whose constants are not known here
            consts = ["?"] * len(jaxpr.constvars)
        results = self.expand(jaxpr, consts, arguments)
        self.add(f"end {' '.join(map(self.use, results))}".rstrip(), None)

    def _parameters(self, params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        parts = {key.partition("/")[0] for key, _ in _parts(params)}
        for key in sorted(params):
            if key not in _IGNORED and key not in parts:
                yield key, self._parameter(params[key])

    def _parameter(self, value: Any) -> str:
        if isinstance(value, np.ndarray | jax.Array):
            return self._constant(value)
        if isinstance(value, jax.sharding.Sharding | jax.sharding.Mesh | jax.sharding.AbstractMesh | jax.Device):
            return "None"
        if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
            return f"({', '.join(map(self._parameter, value))})"
        if isinstance(value, Mapping):
            return f"{{{', '.join(f'{k}: {self._parameter(v)}' for k, v in sorted(value.items(), key=repr))}}}"
        if isinstance(value, type) or not callable(value):
            return _ADDRESS.sub("", str(value))
        return digests.of_function(value)

    def _constant(self, value: Any) -> str:
        if isinstance(value, str):
            return value
        # Kept with its text, since the number of an object is given to another one after its end.
        if id(value) not in self._constants:
            self._constants[id(value)] = value, _constant(value)
        return self._constants[id(value)][1]


def _constant(value: Any) -> str:
    if not tree_paths.is_key(value) and np.size(value) <= _WRITTEN_OUT and getattr(value, "is_fully_addressable", True):
        array = np.asarray(value)
        return str(array[()]) if array.ndim == 0 else f"{tree_paths.describe(array)}{array.tolist()}".replace(" ", "")
    return f"{tree_paths.describe(value)}#{digests.of_array(value)}"


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) if hasattr(leaf, "dtype") else leaf


def _type(aval: Any) -> str:
    if hasattr(aval, "dtype") and hasattr(aval, "shape"):
        return f"{aval.dtype}[{','.join(map(str, aval.shape))}]"
    return type(aval).__name__


def _open(jaxpr: Any) -> Any:
    return jaxpr.jaxpr if hasattr(jaxpr, "consts") else jaxpr


def _consts(jaxpr: Any) -> list[Any]:
    return list(getattr(jaxpr, "consts", ()))


def _is_jaxpr(value: Any) -> bool:
    return hasattr(value, "eqns") and hasattr(_open(value), "invars")


def _parts(params: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the jaxprs among the parameters of an equation, alone or in tuples."""
    for key, value in sorted(params.items()):
        if _is_jaxpr(value):
            yield key, value
        elif isinstance(value, tuple | list) and value and all(map(_is_jaxpr, value)):
            for number, one in enumerate(value):
                yield f"{key}/{number}", one


def _shorten(line: str, length: int = 160) -> str:
    return line if len(line) <= length else line[: length - 3] + "..."
