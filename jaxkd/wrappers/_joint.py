"""Groups of models that train in one step: peers, or a teacher with its student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd._core.model_calls import check_names
from jaxkd.types import REPLICAS, Array, Batch, Model, Outputs, PyTree, Variables


def joint(models: Mapping[str, Model], *, main: str | None = None) -> Model:
    """Combines models of any architectures into one that runs all of them.

    Each member has its own parameters, and all members see the same batch. The outputs of a member have its name as
    prefix: ``"a/logits"``, ``"a/stage2"``; `jaxkd.objectives.select` applies an objective to two members. The group's
    own ``"logits"`` are those of ``main``.

    Args:
      models: the members by name.
      main: the member whose outputs are also those of the group, such as the student beside its teacher, or the leader
        of a group; None for the mean of all members' logits, their ensemble.

    Returns:
      A `Model` with ``Variables({name: params}, {name: state})``. Member i is initialized with ``fold_in(key, i)``.
      `get_member` extracts one.

    Raises:
      ValueError: there are no members, a name is empty or holds a slash, or ``main`` is not a member. Without ``main``,
        ``apply`` raises it if a member has no logits, or if the members' logits differ in shape.

    >>> from jaxkd import adapters
    >>> wide, narrow = (
    ...     adapters.plain(lambda key, x, n=n: jnp.ones((n, 2)), lambda w, x: x @ w[: x.shape[1]], inputs="x")
    ...     for n in (5, 3)
    ... )
    >>> both = joint({"wide": wide, "narrow": narrow})
    >>> variables = both.init(jax.random.key(0), {"x": jnp.ones((4, 3))})
    >>> outputs, _ = both.apply(variables, {"x": jnp.ones((4, 3))}, key=None, train=False)
    >>> sorted(outputs), get_member(variables, "narrow").params.shape
    (['logits', 'narrow/logits', 'wide/logits'], (3, 2))
    """
    models = dict(models)
    check_names("joint", models, REPLICAS)
    for name, model in models.items():
        checks.contract(f"joint, {name!r}", model, Model)
    if main is not None:
        checks.known(main, list(models), "joint, main")

    def init(key: Array, batch: Batch) -> Variables:
        made = {name: model.init(jax.random.fold_in(key, i), batch) for i, (name, model) in enumerate(models.items())}
        return Variables({name: v.params for name, v in made.items()}, {name: v.state for name, v in made.items()})

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        outputs: dict[str, Outputs] = {}
        state = {}
        for i, (name, model) in enumerate(models.items()):
            own = None if key is None else jax.random.fold_in(key, i)
            outputs[name], state[name] = model.apply(get_member(variables, name), batch, key=own, train=train)
        return _named(outputs, main), state

    return Model(init, apply)


def replicate(model: Model, count: int) -> Model:
    """Combines models of one architecture, run by `jax.vmap` over their parameters.

    It is a `joint` with the members ``"0"``, ``"1"``, ... On an accelerator, small members together cost little more
    than one. On a CPU a mapped convolution is slow: there a `joint` of the model under several names is faster, with
    equal results.

    Args:
      model: the architecture.
      count: the number of members.

    Returns:
      A `Model` whose arrays have a leading axis of members. Member i is initialized with ``fold_in(key, i)``.

    Raises:
      ValueError: the count is not positive; ``apply`` raises it if the model has no logits.

    >>> from jaxkd import adapters
    >>> model = adapters.plain(lambda key, x: jax.random.normal(key, (3, 2)), lambda w, x: x @ w, inputs="x")
    >>> peers = replicate(model, 4)
    >>> variables = peers.init(jax.random.key(0), {"x": jnp.ones((5, 3))})
    >>> outputs, _ = peers.apply(variables, {"x": jnp.ones((5, 3))}, key=None, train=False)
    >>> sorted(outputs), get_member(variables, "3").params.shape
    (['0/logits', '1/logits', '2/logits', '3/logits', 'logits'], (3, 2))
    """
    checks.contract("replicate, model", model, Model)
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"replicate, count: expected a whole, positive number of members, got {count}.")

    def each(key: Array | None) -> Array | None:
        return None if key is None else jnp.stack([jax.random.fold_in(key, i) for i in range(count)])

    def init(key: Array, batch: Batch) -> Variables:
        made = jax.vmap(lambda key: model.init(key, batch))(each(key))
        return Variables({REPLICAS: made.params}, {REPLICAS: made.state})

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        def one(params: PyTree, state: PyTree, key: Array | None) -> tuple[dict[str, Array], PyTree]:
            outputs, state = model.apply(Variables(params, state), batch, key=key, train=train)
            return dict(outputs), state

        stacked, state = jax.vmap(one)(variables.params[REPLICAS], variables.state[REPLICAS], each(key))
        outputs = {str(i): {name: x[i] for name, x in stacked.items()} for i in range(count)}
        return _named(outputs, None), {REPLICAS: state}

    return Model(init, apply)


def get_member(variables: Variables, name: str) -> Variables:
    """Returns one model's variables from those of several.

    The several are those of a `joint`, of `replicate`, of a model with exits or of a `jaxkd.schemes.sequential`.

    Args:
      variables: variables of several models, such as ``state.student``.
      name: the model's name; the members of `replicate` are ``"0"``, ``"1"``, ...

    Returns:
      `Variables` for the member's own model.

    Raises:
      ValueError: there is no such member.

    >>> get_member(Variables({"a": 1, "b": 2}, {"a": {}, "b": {}}), "b")
    Variables(params=2, state={})
    """
    if not isinstance(variables.params, Mapping):
        raise ValueError("get_member: expected the variables of several models, got those of one.")
    if variables.params.keys() == {REPLICAS}:
        count = jax.tree.leaves(variables.params)[0].shape[0]
        checks.known(name, [str(i) for i in range(count)], "get_member")
        picked: Variables = jax.tree.map(
            lambda x: x[int(name)], Variables(variables.params[REPLICAS], variables.state[REPLICAS])
        )
        return picked
    checks.known(name, list(variables.params), "get_member")
    return Variables(variables.params[name], variables.state.get(name, {}))


def set_member(variables: Variables, name: str, new: Variables) -> Variables:
    """Returns the variables of several models with one replaced; inverts `get_member`.

    Args:
      variables: variables of several models.
      name: name of the model to replace.
      new: its new variables.

    Raises:
      ValueError: there is no such member.

    >>> set_member(Variables({"a": 1, "b": 2}, {"a": {}, "b": {}}), "b", Variables(3)).params
    {'a': 1, 'b': 3}
    """
    get_member(variables, name)
    if variables.params.keys() == {REPLICAS}:
        stacked: Any = jax.tree.map(
            lambda x, y: x.at[int(name)].set(y), Variables(variables.params[REPLICAS], variables.state[REPLICAS]), new
        )
        return Variables({REPLICAS: stacked.params}, {REPLICAS: stacked.state})
    return Variables({**variables.params, name: new.params}, {**variables.state, name: new.state})


def _named(members: Mapping[str, Outputs], main: str | None) -> Outputs:
    """Prefixes the members' outputs with their names, and adds the group's own."""
    outputs = {f"{name}/{output}": x for name, own in members.items() for output, x in own.items()}
    if main is not None:
        return {**outputs, **members[main]}
    for name, own in members.items():
        checks.known("logits", checks.shapes(own), f"joint, output of {name!r}")
    logits = {name: own["logits"] for name, own in members.items()}
    first, *others = logits.values()
    if any(other.shape != first.shape for other in others):
        raise ValueError(
            f"joint: expected logits of one shape, to average them, got {checks.describe(logits)}. Name the member "
            "whose logits are the group's: joint(..., main=)."
        )
    if others:
        dtype = jnp.result_type(jnp.float32, *logits.values())
        first = jnp.mean(jnp.stack([x.astype(dtype) for x in logits.values()]), axis=0)
    return {**outputs, "logits": first}
