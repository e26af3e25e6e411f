"""Rules that choose the key frames of a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd._core.batches import Path, lookup
from jaxkd.schemes.streams._selector import advance, initial_carry
from jaxkd.types import Array, Context, PyTree


class KeyFrameRule(NamedTuple):
    """Rule that decides for each frame whether the teacher is asked.

    Attributes:
      init: ``(key, context) -> state``, where the context holds `jax.ShapeDtypeStruct` leaves; any pytree of arrays.
      ask: ``(state, context, key) -> (asked, state)``, a boolean scalar and the new state. The context has the
        student's outputs for the frame before its adaptation and none of the teacher's; ``key`` is the frame's own.
    """

    init: Callable[..., PyTree]
    ask: Callable[..., tuple[Any, PyTree]]


def at_intervals(interval: int) -> KeyFrameRule:
    """Returns the rule of every k-th frame, beginning with the first.

    Args:
      interval: number of frames from one key frame to the next; with 1, every frame is one (an oracle).

    Raises:
      ValueError: the interval is not positive.

    >>> rule = at_intervals(2)
    >>> state, found = rule.init(None, None), []
    >>> for _ in range(4):
    ...     asked, state = rule.ask(state, None, None)
    ...     found.append(bool(asked))
    >>> found
    [True, False, True, False]
    """
    if interval < 1:
        raise ValueError(f"at_intervals, interval: expected at least 1 frame, got {interval}.")

    def init(key: Array, context: Context) -> Array:
        del key, context
        return jnp.int32(interval - 1)

    def ask(since: Array, context: Context, key: Array) -> tuple[Array, Array]:
        del context, key
        asked = since + 1 >= interval
        return asked, jnp.where(asked, 0, since + 1)

    return KeyFrameRule(init, ask)


def at_random(probability: float) -> KeyFrameRule:
    """Returns the rule that draws each frame with a probability.

    Args:
      probability: from 0, a student that is left as it is, to 1.

    Raises:
      ValueError: the probability is outside of [0, 1].

    >>> rule = at_random(0.0)
    >>> bool(rule.ask((), None, jax.random.key(0))[0])
    False
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"at_random, probability: expected a number from 0 to 1, got {probability}.")

    def ask(state: PyTree, context: Context, key: Array) -> tuple[Array, PyTree]:
        del context
        return jax.random.uniform(key) < probability, state

    return KeyFrameRule(lambda key, context: (), ask)


def on_change(path: Path, *, threshold: float) -> KeyFrameRule:
    """Returns the rule of frames that differ from the last key frame.

    The first frame is a key frame, and then each whose array x has ``‖x − x_key‖ > threshold · ‖x_key‖``, as after a
    motion or a cut. Features of a frozen part of the student change with the frame alone; other features also change
    with the adaptation.

    Args:
      path: path of an entry of the context, such as ``"student/level1"`` or ``"batch/image"``.
      threshold: relative change above which a frame is a key frame, at least 0.

    Raises:
      ValueError: the threshold is negative; from ``init``: there is no such entry.

    >>> rule = on_change("batch/image", threshold=0.5)
    >>> context = lambda value: Context({}, {}, {"image": jnp.full((1, 2), value)}, 0)
    >>> state, found = rule.init(None, context(0.0)), []
    >>> for value in (1.0, 1.4, 1.6, 1.0):
    ...     asked, state = rule.ask(state, context(value), None)
    ...     found.append(bool(asked))
    >>> found
    [True, False, True, False]
    """
    if threshold < 0:
        raise ValueError(f"on_change, threshold: expected a number of at least 0, got {threshold}.")

    def init(key: Array, context: Context) -> dict[str, Array]:
        del key
        return {"reference": jnp.zeros(_array(context, path).shape, jnp.float32), "known": jnp.array(False)}

    def ask(state: dict[str, Array], context: Context, key: Array) -> tuple[Array, dict[str, Array]]:
        del key
        x, reference = _array(context, path).astype(jnp.float32), state["reference"]
        asked = ~state["known"] | (_norm(x - reference) > threshold * _norm(reference))
        return asked, {"reference": jnp.where(asked, x, reference), "known": jnp.array(True)}

    return KeyFrameRule(init, ask)


def as_predicted(params: PyTree, path: Path, *, threshold: float = 0.5) -> KeyFrameRule:
    """Returns the rule of a trained recurrent network that reads a feature.

    A frame is a key frame where the network's probability is above the threshold. Its inputs are the feature's means
    over all positions, in the order of the frames. Bajestani & Yang, WACV 2020, choose key frames by an LSTM on the
    student's features, whose inputs and targets are not public; it is read here as a classifier of frames on which the
    adaptation lowers the loss by more than ε, trained before on a stream in which every frame was a key frame.

    Args:
      params: trained parameters, from `init_selector` and any training of `selector_logits`.
      path: path of the feature ``[1, ..., channels]``, such as ``"student/level1"``, best of a frozen part.
      threshold: probability above which a frame is a key frame; a lower one asks more often.

    Returns:
      A `KeyFrameRule` whose state holds the network's parameters and memory.

    Raises:
      ValueError: from ``init``: there is no such entry, or it has other channels than the network.

    >>> from jaxkd.schemes.streams import init_selector
    >>> rule = as_predicted(init_selector(jax.random.key(0), 3), "student/map")
    >>> context = Context({"map": jnp.ones((1, 2, 2, 3))}, {}, {}, 0)
    >>> asked, state = rule.ask(rule.init(None, context), context, None)
    """

    def init(key: Array, context: Context) -> PyTree:
        del key
        shape, channels = _array(context, path).shape, params["input"].shape[0]
        if shape[-1] != channels:
            raise ValueError(
                f"as_predicted, path {path!r}: expected a feature of the {channels} channels that the network reads, "
                f"got {list(shape)}."
            )
        # Copies: a step may donate its state, and the caller keeps the parameters.
        return {"params": jax.tree.map(lambda x: jnp.array(x, copy=True), params), "carry": initial_carry(params, 1)}

    def ask(state: PyTree, context: Context, key: Array) -> tuple[Array, PyTree]:
        del key
        x = _array(context, path).astype(jnp.float32)
        x = x.reshape(1, -1, x.shape[-1]).mean(axis=1)
        carry, logit = advance(state["params"], state["carry"], x)
        return jax.nn.sigmoid(logit[0]) > threshold, {**state, "carry": carry}

    return KeyFrameRule(init, ask)


def _array(context: Context, path: Path) -> Any:
    x = lookup(context, path)
    if not hasattr(x, "shape") or len(x.shape) < 2:
        raise ValueError(f"path {path!r}: expected one array [1, ..., values] of a frame, got {checks.shape(x)}.")
    return x


def _norm(x: Array) -> Array:
    return jnp.sqrt(jnp.sum(x**2))
