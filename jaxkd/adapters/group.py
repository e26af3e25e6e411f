"""Several models as one: peers that learn from each other, a teacher that learns beside its student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import checks
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables

__all__ = ["copies", "group", "member", "replace_member"]

_COPIES = "copies"


def group(models: Mapping[str, Model], *, main: str | None = None) -> Model:
    """Models of any architectures as one, trained in one step: each has its own parameters, and all see one batch.

    The outputs of a member are there under its name, ``"a/logits"``, ``"a/stage2"``; `jaxkd.objectives.between` reads
    an objective between two of them. What the group itself says, ``"logits"``, is what ``main`` says.

    Args:
      models: the members by name.
      main: the member whose outputs are also those of the group, such as the student beside its teacher, or the leader
        of a group; None for the mean of all members' logits, their ensemble.

    Returns:
      A `Model` with ``Variables({name: params}, {name: state})``. Member i is initialised by ``fold_in(key, i)``.
      `member` takes one out.

    Raises:
      ValueError: there are no members, a name is empty or holds a slash, or there is no ``main``; and when it is
        applied without one: a member has no logits, or of another shape than the others.

    >>> from jaxkd import adapters
    >>> wide, narrow = (
    ...     adapters.plain(lambda key, x, n=n: jnp.ones((n, 2)), lambda w, x: x @ w[: x.shape[1]], inputs="x")
    ...     for n in (5, 3)
    ... )
    >>> both = group({"wide": wide, "narrow": narrow})
    >>> variables = both.init(jax.random.key(0), {"x": jnp.ones((4, 3))})
    >>> outputs, _ = both.apply(variables, {"x": jnp.ones((4, 3))}, key=None, train=False)
    >>> sorted(outputs), member(variables, "narrow").params.shape
    (['logits', 'narrow/logits', 'wide/logits'], (3, 2))
    """
    models = dict(models)
    if not models or (wrong := [name for name in models if not name or "/" in name or name == _COPIES]):
        expected = f"names that are not empty, hold no slash and are not {_COPIES!r}" if models else "at least one"
        raise ValueError(f"group: expected {expected}, got {wrong if models else 'none'}.")
    if main is not None:
        checks.known(main, list(models), "group, main")

    def init(key: Array, batch: Batch) -> Variables:
        made = {name: model.init(jax.random.fold_in(key, i), batch) for i, (name, model) in enumerate(models.items())}
        return Variables({name: v.params for name, v in made.items()}, {name: v.state for name, v in made.items()})

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        found: dict[str, Outputs] = {}
        state = {}
        for i, (name, model) in enumerate(models.items()):
            own = None if key is None else jax.random.fold_in(key, i)
            found[name], state[name] = model.apply(member(variables, name), batch, key=own, train=train)
        return _named(found, main), state

    return Model(init, apply)


def copies(model: Model, count: int) -> Model:
    """A group of equal architectures, run as one program: `jax.vmap` over their parameters.

    What `group` says holds, with the members ``"0"``, ``"1"``, ... On an accelerator, small members together then cost
    little more than one. On a CPU a mapped convolution is slow: there a `group` of the same model, by several names,
    computes the same and is faster.

    Args:
      model: the architecture.
      count: how many.

    Returns:
      A `Model` whose arrays have a leading axis of members. Member i is initialised by ``fold_in(key, i)``.

    Raises:
      ValueError: the count is not positive; and when it is applied: the model has no logits.

    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: jax.random.normal(key, (3, 2)), lambda w, x: x @ w, inputs="x")
    >>> peers = copies(model, 4)
    >>> variables = peers.init(jax.random.key(0), {"x": jnp.ones((5, 3))})
    >>> outputs, _ = peers.apply(variables, {"x": jnp.ones((5, 3))}, key=None, train=False)
    >>> sorted(outputs), member(variables, "3").params.shape
    (['0/logits', '1/logits', '2/logits', '3/logits', 'logits'], (3, 2))
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"copies, count: expected a whole, positive number of members, got {count}.")

    def each(key: Array | None) -> Array | None:
        return None if key is None else jnp.stack([jax.random.fold_in(key, i) for i in range(count)])

    def init(key: Array, batch: Batch) -> Variables:
        made = jax.vmap(lambda key: model.init(key, batch))(each(key))
        return Variables({_COPIES: made.params}, {_COPIES: made.state})

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        def one(params: PyTree, state: PyTree, key: Array | None) -> tuple[dict[str, Array], PyTree]:
            outputs, state = model.apply(Variables(params, state), batch, key=key, train=train)
            return dict(outputs), state

        stacked, state = jax.vmap(one)(variables.params[_COPIES], variables.state[_COPIES], each(key))
        found = {str(i): {name: x[i] for name, x in stacked.items()} for i in range(count)}
        return _named(found, None), {_COPIES: state}

    return Model(init, apply)


def member(variables: Variables, name: str) -> Variables:
    """One model's variables out of those of several: of a `group`, of `copies`, of a model with exits or a relay.

    Args:
      variables: those of several, such as ``state.student``.
      name: of the one; the members of `copies` are ``"0"``, ``"1"``, ...

    Returns:
      `Variables` for the member's own model, which stands alone.

    Raises:
      ValueError: there is no such member.

    >>> member(Variables({"a": 1, "b": 2}, {"a": {}, "b": {}}), "b")
    Variables(params=2, state={})
    """
    if not isinstance(variables.params, Mapping):
        raise ValueError("member: expected the variables of several models, got those of one.")
    if variables.params.keys() == {_COPIES}:
        count = jax.tree.leaves(variables.params)[0].shape[0]
        checks.known(name, [str(i) for i in range(count)], "member")
        picked: Variables = jax.tree.map(
            lambda x: x[int(name)], Variables(variables.params[_COPIES], variables.state[_COPIES])
        )
        return picked
    checks.known(name, list(variables.params), "member")
    return Variables(variables.params[name], variables.state.get(name, {}))


def replace_member(variables: Variables, name: str, new: Variables) -> Variables:
    """The variables of several models with another one under a name: the inverse of `member`.

    Args:
      variables: those of several.
      name: of the one.
      new: its variables.

    Raises:
      ValueError: there is no such member.

    >>> replace_member(Variables({"a": 1, "b": 2}, {"a": {}, "b": {}}), "b", Variables(3)).params
    {'a': 1, 'b': 3}
    """
    member(variables, name)
    if variables.params.keys() == {_COPIES}:
        stacked: Any = jax.tree.map(
            lambda x, y: x.at[int(name)].set(y), Variables(variables.params[_COPIES], variables.state[_COPIES]), new
        )
        return Variables({_COPIES: stacked.params}, {_COPIES: stacked.state})
    return Variables({**variables.params, name: new.params}, {**variables.state, name: new.state})


def _named(found: Mapping[str, Outputs], main: str | None) -> Outputs:
    """All members' outputs by name, and the group's own."""
    outputs = {f"{name}/{output}": x for name, own in found.items() for output, x in own.items()}
    if main is not None:
        return {**outputs, **found[main]}
    for name, own in found.items():
        checks.known("logits", {k: checks.shape(x) for k, x in own.items()}, f"group, output of {name!r}")
    logits = {name: own["logits"] for name, own in found.items()}
    first, *others = logits.values()
    if any(other.shape != first.shape for other in others):
        raise ValueError(
            f"group: expected logits of one shape, to be averaged, got {checks.describe(logits)}. Name the member "
            "whose logits are the group's: group(..., main=)."
        )
    if others:
        dtype = jnp.result_type(jnp.float32, *logits.values())
        first = jnp.mean(jnp.stack([x.astype(dtype) for x in logits.values()]), axis=0)
    return {**outputs, "logits": first}
