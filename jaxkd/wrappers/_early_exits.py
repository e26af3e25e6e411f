"""Classifiers at the taps of a model: early exits and multi-branch networks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax

from jaxkd._core import checks
from jaxkd._core.model_calls import check_names, refuse_entries
from jaxkd.types import FEATURE, Array, Batch, Model, Outputs, PyTree, Variables
from jaxkd.wrappers._joint import get_member

_MODEL = "model"


class Exit(NamedTuple):
    """Additional classifier of a model.

    Attributes:
      at: the output of the model, usually a tap, that the classifier reads.
      head: a model that reads it as the batch entry ``feature``, such as ``adapters.linen(Head(), inputs="feature")``.
    """

    at: str
    head: Model


def with_exits(model: Model, exits: Mapping[str, Exit]) -> Model:
    """Adds classifiers at a model's taps, without editing the model.

    Early exits at several depths are those of self distillation (Zhang et al., "Be Your Own Teacher", ICCV 2019, figure
    2); several at one tap are the branches of a shared trunk (Lan, Zhu & Gong, "Knowledge Distillation by On-the-Fly
    Native Ensemble", NeurIPS 2018, figure 1). The outputs of an exit have its name as prefix: ``"early/logits"``.
    Gradients reach the model through its exits.

    Args:
      model: model from an adapter, with taps.
      exits: the classifiers by name.

    Returns:
      A `Model` with ``Variables({"model": ..., name: ...}, ...)``; ``wrappers.get_member(variables, "model")`` returns
      the variables of the model without exits, which are initialized as without them.

    Raises:
      ValueError: there are no exits, or a name is invalid; ``init`` and ``apply`` raise it if the model has no such
        output.

    >>> import jax.numpy as jnp
    >>> from jaxkd import adapters
    >>> model = adapters.plain(
    ...     lambda key, x: jnp.ones((2, 3)), lambda w, x: {"logits": x @ w, "hidden": 2 * x}, inputs="x"
    ... )
    >>> head = adapters.plain(lambda key, f: jnp.ones((2, 3)), lambda w, f: f @ w, inputs="feature")
    >>> both = with_exits(model, {"early": Exit("hidden", head)})
    >>> batch = {"x": jnp.ones((4, 2))}
    >>> variables = both.init(jax.random.key(0), batch)
    >>> sorted(both.apply(variables, batch, key=None, train=False)[0]), sorted(variables.params)
    (['early/logits', 'hidden', 'logits'], ['early', 'model'])
    """
    checks.contract("with_exits, model", model, Model)
    check_names("with_exits", exits, _MODEL)

    def at(name: str, outputs: Outputs) -> Array:
        what = f"exit {name!r}, output of the model"
        checks.known(exits[name].at, checks.shapes(outputs), what, hint="Add a tap to the model's adapter.")
        return outputs[exits[name].at]

    def init(key: Array, batch: Batch) -> Variables:
        refuse_entries("with_exits", batch, [FEATURE])
        own = model.init(key, batch)
        outputs = jax.eval_shape(lambda v, b: dict(model.apply(v, b, key=None, train=False)[0]), own, dict(batch))
        params, state = {_MODEL: own.params}, {_MODEL: own.state}
        for i, name in enumerate(exits):
            feature = at(name, outputs)
            seen = {**batch, FEATURE: jax.numpy.zeros(feature.shape, feature.dtype)}
            made = exits[name].head.init(jax.random.fold_in(key, i + 1), seen)
            params[name], state[name] = made.params, made.state
        return Variables(params, state)

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        refuse_entries("with_exits", batch, [FEATURE])
        plain, state = model.apply(get_member(variables, _MODEL), batch, key=key, train=train)
        outputs, states = dict(plain), {_MODEL: state}
        for i, name in enumerate(exits):
            own = None if key is None else jax.random.fold_in(key, i + 1)
            seen = {**batch, FEATURE: at(name, plain)}
            head_outputs, states[name] = exits[name].head.apply(get_member(variables, name), seen, key=own, train=train)
            outputs |= {f"{name}/{output}": x for output, x in head_outputs.items()}
        return outputs, states

    return Model(init, apply)
