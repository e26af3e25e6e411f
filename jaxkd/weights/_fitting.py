"""Fits arrays by name to a model, and reports all mismatches."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import checks, tree_paths
from jaxkd._core.arrays import casts
from jaxkd.types import PyTree
from jaxkd.weights import _tree
from jaxkd.weights import names as names_lib

_MAX_SHOWN = 20


class WeightsError(ValueError):
    """Raised when arrays do not fit a model.

    Attributes:
      problems: one line for each mismatch; the message may omit some.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


def fit_to(
    template: Any,
    source: Mapping[str, Any],
    *,
    names: names_lib.Names = None,
    ignore: str | Sequence[str] = (),
    missing: str | Sequence[str] = (),
    extra: str | Sequence[str] = (),
) -> PyTree:
    """Returns weights from a file in the structure of a model, after checking them.

    Every array of the source must be used or ignored, every array of the model filled, and every shape equal. Floating
    point arrays are converted to the dtype of the model if finite values stay finite (``finfo(dtype).min``, as in
    masks, is clipped); integers if the values stay the same.

    Args:
      template: has the structure, shapes and dtypes of the result, and its shardings, if any: `Variables`, as from
        ``jax.eval_shape(model.init, key, batch)``; linen's dict; an nnx module. Its values are not read, except for
        ``missing``.
      source: arrays by name, as from `load_safetensors`, `load_orbax` or `load_run`; or weights in any form that
        `flatten` takes. A name may omit its collection: ``Dense_0/kernel`` means ``params/Dense_0/kernel``.
      names: map from the source's names to the model's; see `jaxkd.weights.names`.
      ignore: regular expressions of whole names in the source that are not read.
      missing: regular expressions of whole names in the model that the source may lack, such as
        ``"params/head/.*"`` for a new head. Those keep the values of the template, which has to have values.
      extra: regular expressions of whole names in the source that the model may lack; ``".*"`` for any. Unlike those of
        ``ignore``, they are read where the model has their place.

    Returns:
      The weights: linen's dict if the template is one, otherwise `Variables`.

    Raises:
      WeightsError: an array is missing, unused or does not fit; the message lists all of them with the closest names.
      TypeError: template, source or names have an unknown form.

    >>> template = {"params": {"Dense_0": {"kernel": jax.ShapeDtypeStruct((2, 1), jnp.float32)}}}
    >>> fit_to(template, {"head/kernel": np.ones((2, 1))}, names={"head": "Dense_0"})
    {'params': {'Dense_0': {'kernel': Array([[1.], [1.]], dtype=float32)}}}
    >>> fit_to(template, {"Dense_0/kernel": np.ones((1, 2))})  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    jaxkd.weights.WeightsError: expected the arrays of the model: 1 mismatched.
      mismatched: 'Dense_0/kernel' float64[1, 2] for params/Dense_0/kernel float32[2, 1]: laid out as [1, 2];
      transposed by (1, 0) it would fit
    """
    return fill(template, named_arrays(source), names_lib.renamer(names), ignore=ignore, missing=missing, extra=extra)


def named_arrays(source: Any) -> dict[str, Any]:
    """Returns a flat mapping of names to arrays, flattening weights of another form."""
    if isinstance(source, Mapping) and all(hasattr(value, "dtype") for value in source.values()):
        return dict(source)
    if isinstance(source, Mapping) and "params" not in source:
        return tree_paths.by_path(dict(source))
    return _tree.flatten(source)


def fill(
    template: Any,
    source: Mapping[str, Any],
    rename: Callable[[str], tuple[str, ...]],
    *,
    spellings: Callable[[str], Iterable[str]] = lambda name: (name,),
    convert: Callable[[str, Any], Any] = lambda name, array: array,
    ignore: str | Sequence[str] = (),
    missing: str | Sequence[str] = (),
    extra: str | Sequence[str] = (),
    advise: Callable[[Sequence[str]], str] = lambda unused: "",
) -> PyTree:
    """Implements `fit_to`, parameterized by the conventions of another library.

    Args:
      template: as in `fit_to`.
      source: arrays by name.
      rename: from a source name to the model names that the array fills.
      spellings: from a renamed name to the names that it may have in the model.
      convert: ``(name in the model, array) -> array`` in the model's layout; a ValueError becomes a problem.
      ignore: as in `fit_to`.
      missing: as in `fit_to`.
      extra: as in `fit_to`.
      advise: from the names of unused arrays to advice for the message.
    """
    variables = _tree.student_of(template)
    collections = _tree.collections_of(variables)
    wanted = tree_paths.by_path(collections)
    places = _Places(wanted)
    ignored = names_lib.matcher(ignore, "ignore")
    filled: dict[str, Any] = {}
    origin: dict[str, str] = {}
    unused: dict[str, tuple[str, ...]] = {}
    mismatches = []
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
                mismatches.append(f"{name!r} and {origin[found]!r} both name {found}")
                continue
            origin[found] = name
            try:
                filled[found] = _adapted(convert(found, array), wanted[found])
            except ValueError as error:
                mismatches.append(f"{name!r} {checks.shape(array)} for {found} {checks.shape(wanted[found])}: {error}")
    may_lack, may_be_unused = names_lib.matcher(missing, "missing"), names_lib.matcher(extra, "extra")
    unused = {name: new for name, new in unused.items() if not may_be_unused(name)}
    lacking = []
    for name, like in wanted.items():
        if name in origin:
            continue
        if not may_lack(name):
            lacking.append(name)
        elif isinstance(like, jax.ShapeDtypeStruct):
            mismatches.append(f"{name} may be missing, but the template has no values: use those of model.init")
        else:
            filled[name] = like
    if lacking or unused or mismatches:
        _fail(lacking, unused, mismatches, wanted, source, advise(list(unused)))
    leaves = [_placed(filled[name], like) for name, like in wanted.items()]
    made = jax.tree.unflatten(jax.tree.structure(collections), leaves)
    return made if isinstance(template, Mapping) else _tree.variables_of(made, like=variables)


class _Places:
    """Names of a model's arrays, to look up with or without their collection."""

    def __init__(self, wanted: Mapping[str, Any]) -> None:
        self._full = set(wanted)
        self._short: dict[str, list[str]] = {}
        for name in wanted:
            self._short.setdefault(name.partition("/")[2], []).append(name)

    def find(self, spellings: Iterable[str]) -> str | None:
        """Returns the only array that one of the spellings names, or None."""
        found = {place for name in spellings for place in self._matches(name)}
        return found.pop() if len(found) == 1 else None

    def _matches(self, name: str) -> list[str]:
        return [name] if name in self._full else self._short.get(name, [])


def _adapted(array: Any, like: Any) -> np.ndarray | jax.Array:
    """Returns an array in the dtype of the model.

    Raises:
      ValueError: the shapes differ, or the dtype cannot represent the values.
    """
    found, wanted = tuple(array.shape), tuple(like.shape)
    if found != wanted:
        raise ValueError(_shape_hint(found, wanted))
    dtype = jax.dtypes.canonicalize_dtype(like.dtype)
    if array.dtype == dtype:
        return array
    # NumPy rather than jnp: without x64, JAX would narrow a float64 or int64 before its values can be checked.
    given = np.asarray(array)
    with np.errstate(over="ignore"):
        converted = given.astype(dtype)
    if jnp.issubdtype(given.dtype, jnp.floating) and jnp.issubdtype(dtype, jnp.floating):
        # The largest value of a dtype stands for "as far as possible", as in masks, and may be clipped.
        extreme = np.abs(given) == jnp.finfo(given.dtype).max
        if np.array_equal(np.isfinite(given), np.isfinite(converted) | extreme):
            return np.asarray(casts.cast(given, dtype))
        raise ValueError(f"values too large for {dtype}")
    kinds = [jnp.issubdtype(given.dtype, jnp.integer), jnp.issubdtype(dtype, jnp.integer)]
    if all(kinds) and np.array_equal(given, converted.astype(given.dtype)):
        return converted
    raise ValueError(f"{given.dtype} cannot be converted to {dtype} without changing values or their meaning")


def _shape_hint(found: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    text = f"laid out as {list(found)}"
    if sorted(found) == sorted(wanted) and len(found) <= 6:
        orders = itertools.permutations(range(len(found)))
        axes = next(axes for axes in orders if tuple(found[axis] for axis in axes) == wanted)
        return f"{text}; transposed by {axes} it would fit"
    if np.prod(found) == np.prod(wanted):
        return f"{text}, with the same number of elements; is a reshape missing?"
    return text


def _placed(array: Any, like: Any) -> jax.Array:
    sharding = getattr(like, "sharding", None) if getattr(like, "committed", True) else None
    return jnp.array(array) if sharding is None else jax.device_put(array, sharding)


def _fail(
    missing: Sequence[str],
    unused: Mapping[str, tuple[str, ...]],
    mismatches: Sequence[str],
    wanted: Mapping[str, Any],
    source: Mapping[str, Any],
    advice: str,
) -> None:
    spare = {name: source[name] for name in unused}
    free = {name: wanted[name] for name in missing}
    lines = [
        [f"mismatched: {mismatch}" for mismatch in mismatches],
        [
            f"missing: {name} {checks.shape(wanted[name])}" + _closest(name, wanted[name], spare, number)
            for number, name in enumerate(missing)
        ],
        [
            f"unused: {name!r} {checks.shape(source[name])}"
            + (f", renamed to {' and '.join(new)}" if new and new != (name,) else "")
            + _closest((*new, name)[0], source[name], free, number)
            for number, (name, new) in enumerate(unused.items())
        ],
    ]
    counts = [f"{len(lines[1])} missing", f"{len(lines[2])} unused", f"{len(lines[0])} mismatched"]
    counts = [count for count in counts if not count.startswith("0 ")]
    shown = [
        line
        for kind in lines
        for line in kind[:_MAX_SHOWN] + ([f"... and {len(kind) - _MAX_SHOWN} more"] if len(kind) > _MAX_SHOWN else [])
    ]
    raise WeightsError(
        f"expected the arrays of the model: {', '.join(counts)}.\n  "
        + "\n  ".join(shown)
        + "\nMap names that differ with names=; list arrays that the model does not need in ignore=, and those that "
        "keep the values of the template in missing=." + advice,
        [line for kind in lines for line in kind],
    )


def _closest(name: str, array: Any, others: Mapping[str, Any], number: int) -> str:
    """Returns the closest array by name, or else by the sizes of the axes."""
    if number >= _MAX_SHOWN:  # not shown in the message, and comparing all pairs of names is slow
        return ""
    plain = {other.replace(".", "/").partition("/")[2] or other: other for other in others}
    plain |= {other: other for other in others}
    close = [plain[found] for found in difflib.get_close_matches(name.replace(".", "/"), plain, n=1, cutoff=0.6)]
    if not close:
        close = [other for other, one in others.items() if sorted(one.shape) == sorted(array.shape)][:1]
    return f" (closest: {close[0]!r} {checks.shape(others[close[0]])})" if close else ""
