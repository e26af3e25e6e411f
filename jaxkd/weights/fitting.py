"""Arrays by name into the structure of a model: every weight used, every place filled, every shape equal."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import checks
from jaxkd.types import PyTree
from jaxkd.weights import names as names_lib
from jaxkd.weights import tree

_SHOWN = 20


class WeightsError(ValueError):
    """Weights that are not those of the model.

    Attributes:
      problems: all of them, a line each; the message may stop before the end.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


def fit_to(
    template: Any, source: Mapping[str, Any], *, names: names_lib.Names = None, ignore: str | Sequence[str] = ()
) -> PyTree:
    """Weights from a file in the structure of a model, checked.

    Every array of the source must be used or ignored, every array of the model filled, and every shape equal. Floating
    point is converted to the dtype of the model where that keeps what is finite finite; integers where that keeps
    their values.

    Args:
      template: of the structure, shapes and dtypes wanted, and of the shardings, where it has any: `Variables`, as
        from ``jax.eval_shape(model.init, key, batch)``; linen's dict; an nnx module. Its values are not read.
      source: arrays by name, as from `load_safetensors`, `load_orbax` or `load_run`; or weights in any form that
        `flatten` takes. A name may lack its collection: ``Dense_0/kernel`` is ``params/Dense_0/kernel`` too.
      names: what is called differently; see `jaxkd.weights.names`.
      ignore: regular expressions; what has a name that matches one as a whole is not needed.

    Returns:
      The weights: linen's dict if the template is one, otherwise `Variables`.

    Raises:
      WeightsError: something is missing, unused or does not fit; the message lists all of it with the closest names.
      TypeError: template, source or names have no such form.

    >>> template = {"params": {"Dense_0": {"kernel": jax.ShapeDtypeStruct((2, 1), jnp.float32)}}}
    >>> fit_to(template, {"head/kernel": np.ones((2, 1))}, names={"head": "Dense_0"})
    {'params': {'Dense_0': {'kernel': Array([[1.], [1.]], dtype=float32)}}}
    >>> fit_to(template, {"Dense_0/kernel": np.ones((1, 2))})  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    jaxkd.weights.fitting.WeightsError: the weights are not those of the model: 1 that do not fit.
      does not fit: 'Dense_0/kernel' float64[1, 2] for params/Dense_0/kernel float32[2, 1]: laid out as [1, 2]; with
      its axes in the order (1, 0) it would fit
    """
    return fill(template, named_arrays(source), names_lib.renamer(names), ignore=ignore)


def named_arrays(source: Any) -> dict[str, Any]:
    """A flat mapping of names to arrays as it is; weights in another form, flattened."""
    if isinstance(source, Mapping) and all(hasattr(value, "dtype") for value in source.values()):
        return dict(source)
    if isinstance(source, Mapping) and "params" not in source:
        return {"/".join(path): leaf for path, leaf in tree.paths(dict(source)).items()}
    return tree.flatten(source)


def fill(
    template: Any,
    source: Mapping[str, Any],
    rename: Callable[[str], tuple[str, ...]],
    *,
    spellings: Callable[[str], Iterable[str]] = lambda name: (name,),
    convert: Callable[[str, Any], Any] = lambda name, array: array,
    ignore: str | Sequence[str] = (),
    advise: Callable[[Sequence[str]], str] = lambda unused: "",
) -> PyTree:
    """What `fit_to` does, with the conventions of another library.

    Args:
      template: as in `fit_to`.
      source: arrays by name.
      rename: from a name to the names of the places that the array fills.
      spellings: from such a name to what it may be called in the model.
      convert: ``(name in the model, array) -> array`` in the model's layout; a ValueError is one of the problems.
      ignore: as in `fit_to`.
      advise: from the names of unused arrays to what else should be said.
    """
    variables = tree.student_of(template)
    collections = tree.collections_of(variables)
    wanted = {"/".join(path): leaf for path, leaf in tree.paths(collections).items()}
    places = _Places(wanted)
    ignored = names_lib.matcher(ignore, "ignore")
    filled: dict[str, Any] = {}
    origin: dict[str, str] = {}
    unused: dict[str, tuple[str, ...]] = {}
    misfits = []
    for name, array in source.items():
        if ignored(name):
            continue
        renamed = rename(name)
        if not renamed:
            unused[name] = ()
        for new in renamed:
            found = places.find(spellings(new))
            if found is None:
                unused[name] = (*unused.get(name, ()), new)
                continue
            if found in origin:
                misfits.append(f"{name!r} and {origin[found]!r} are both for {found}")
                continue
            origin[found] = name
            try:
                filled[found] = _adapted(convert(found, array), wanted[found])
            except ValueError as error:
                misfits.append(f"{name!r} {checks.shape(array)} for {found} {checks.shape(wanted[found])}: {error}")
    missing = [name for name in wanted if name not in origin]
    if missing or unused or misfits:
        _fail(missing, unused, misfits, wanted, source, advise(list(unused)))
    leaves = [_placed(filled[name], like) for name, like in wanted.items()]
    made = jax.tree.unflatten(jax.tree.structure(collections), leaves)
    return made if isinstance(template, Mapping) else tree.variables_of(made, like=variables)


class _Places:
    """The arrays of a model by name, with or without their collection."""

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        self._full = set(wanted)
        self._short: dict[str, list[str]] = {}
        for name in wanted:
            self._short.setdefault(name.partition("/")[2], []).append(name)

    def find(self, spellings: Iterable[str]) -> str | None:
        """The one place that is meant; None if there is none, or if there are several."""
        found = {place for name in spellings for place in self._places(name)}
        return found.pop() if len(found) == 1 else None

    def _places(self, name: str) -> list[str]:
        return [name] if name in self._full else self._short.get(name, [])


def _adapted(array: Any, like: Any) -> np.ndarray | jax.Array:
    """An array in the dtype of the model.

    Raises:
      ValueError: the shape is another, or the dtype does not hold the values.
    """
    found, wanted = tuple(array.shape), tuple(like.shape)
    if found != wanted:
        raise ValueError(_about_shapes(found, wanted))
    dtype = jax.dtypes.canonicalize_dtype(like.dtype)
    if array.dtype == dtype:
        return array
    # NumPy and not jnp: without x64, JAX would cut a float64 or an int64 before it can be looked at.
    given = np.asarray(array)
    with np.errstate(over="ignore"):
        converted = given.astype(dtype)
    if jnp.issubdtype(given.dtype, jnp.floating) and jnp.issubdtype(dtype, jnp.floating):
        if np.array_equal(np.isfinite(given), np.isfinite(converted)):
            return converted
        raise ValueError(f"values too large for {dtype}")
    kinds = [jnp.issubdtype(given.dtype, jnp.integer), jnp.issubdtype(dtype, jnp.integer)]
    if all(kinds) and np.array_equal(given, converted.astype(given.dtype)):
        return converted
    raise ValueError(f"{given.dtype} does not become {dtype} without changing values or what they mean")


def _about_shapes(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    text = f"laid out as {list(found)}"
    if sorted(found) == sorted(wanted) and len(found) <= 6:
        orders = itertools.permutations(range(len(found)))
        axes = next(axes for axes in orders if tuple(found[axis] for axis in axes) == wanted)
        return f"{text}; with its axes in the order {axes} it would fit"
    if np.prod(found) == np.prod(wanted):
        return f"{text}, with as many elements; is a reshape missing?"
    return text


def _placed(array: Any, like: Any) -> jax.Array:
    sharding = getattr(like, "sharding", None) if getattr(like, "committed", True) else None
    return jnp.array(array) if sharding is None else jax.device_put(array, sharding)


def _fail(
    missing: Sequence[str],
    unused: Mapping[str, tuple[str, ...]],
    misfits: Sequence[str],
    wanted: Mapping[str, Any],
    source: Mapping[str, Any],
    advice: str,
) -> None:
    spare = {name: source[name] for name in unused}
    free = {name: wanted[name] for name in missing}
    lines = [
        [f"does not fit: {misfit}" for misfit in misfits],
        [
            f"missing: {name} {checks.shape(wanted[name])}" + _closest(name, wanted[name], spare, number)
            for number, name in enumerate(missing)
        ],
        [
            f"unused: {name!r} {checks.shape(source[name])}"
            + (f", taken for {' and '.join(new)}" if new and new != (name,) else "")
            + _closest((*new, name)[0], source[name], free, number)
            for number, (name, new) in enumerate(unused.items())
        ],
    ]
    counts = [f"{len(lines[1])} missing", f"{len(lines[2])} unused", f"{len(lines[0])} that do not fit"]
    counts = [count for count in counts if not count.startswith("0 ")]
    shown = [
        line
        for kind in lines
        for line in kind[:_SHOWN] + ([f"... and {len(kind) - _SHOWN} more"] if len(kind) > _SHOWN else [])
    ]
    raise WeightsError(
        f"the weights are not those of the model: {', '.join(counts)}.\n  "
        + "\n  ".join(shown)
        + "\nnames= says what is called differently, ignore= what the model does not need."
        + advice,
        [line for kind in lines for line in kind],
    )


def _closest(name: str, array: Any, others: Mapping[str, Any], number: int) -> str:
    """A guess at what was meant: by name, or else by the lengths of the axes."""
    if number >= _SHOWN:  # not shown, and comparing all names with all takes long
        return ""
    plain = {other.replace(".", "/").partition("/")[2] or other: other for other in others}
    plain |= {other: other for other in others}
    close = [plain[found] for found in difflib.get_close_matches(name.replace(".", "/"), plain, n=1, cutoff=0.6)]
    if not close:
        close = [other for other, one in others.items() if sorted(one.shape) == sorted(array.shape)][:1]
    return f" (closest: {close[0]!r} {checks.shape(others[close[0]])})" if close else ""
