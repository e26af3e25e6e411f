"""Rounds: a batch of images is worked on for so many steps, then the best of them go into a pool for the student.

One step of training makes one update of the images (or of what makes them), and the student learns from the pool, so
that the two go on side by side in one program. All of it is state of one shape from the first step to the last: a
round may be interrupted anywhere, and is gone on with.

Images and pool are the same on every device. A device works on the rows of its own examples, which are told by their
place among those of the whole batch that count (`jaxkd.normalization.positions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.schemes.synthesis.contract import IMAGE, LABEL, total
from jaxkd.types import Array, PyTree

__all__ = ["begin", "check", "collect", "draw", "finish", "fits"]


def check(who: str, iterations: int, slots: int) -> None:
    """Raises unless both are positive.

    Raises:
      ValueError: one is not.
    """
    for name, number in (("iterations", iterations), ("slots", slots)):
        if number < 1:
            raise ValueError(f"{who}, {name}: expected at least 1, got {number}.")


def begin(entries: Mapping[str, Any], slots: int) -> dict[str, PyTree]:
    """What a round remembers, before the first.

    Args:
      entries: shapes ``[batch, ...]`` of what a round makes, ``image`` and ``label`` among them.
      slots: of the pool, a batch each.

    Returns:
      ``age``, the updates made in this round; ``best``, what the round's best update was made on, and its ``cost``;
      ``pool``, images and labels of earlier rounds; ``rounds``, how many of them there were.
    """

    def empty(*lead: int, of: Any) -> Array:
        return jnp.zeros((*lead, *of.shape), of.dtype)

    return {
        "age": jnp.zeros((), jnp.int32),
        "best": {"cost": jnp.full((), jnp.inf, jnp.float32), **{k: empty(of=x) for k, x in entries.items()}},
        "pool": {name: empty(slots, of=entries[name]) for name in (IMAGE, LABEL)},
        "rounds": jnp.zeros((), jnp.int32),
    }


def fits(who: str, rows: int, here: int, mask: Array | None, axis_name: str | None) -> None:
    """Raises unless the whole batch has the size that the images were made for.

    Raises:
      ValueError: it has another.
    """
    there = here * (1 if axis_name is None else jax.lax.axis_size(axis_name))
    if there != rows if mask is None else there < rows:
        raise ValueError(
            f"{who}: expected batches of {rows} examples, as the one that init saw, got {there}: so many images are "
            "worked on at a time. Take batches of one size, as those of jaxkd.data.Noise."
        )


def collect(x: Array, places: Array, rows: int, mask: Array | None, axis_name: str | None) -> Array:
    """All devices' examples at their places ``[rows, ...]``, as a sum, so that they are known to be the same on all."""
    at = places if mask is None else jnp.where(mask, places, rows)
    return total(jnp.zeros((rows, *x.shape[1:]), x.dtype).at[at].set(x, mode="drop"), axis_name)


def finish(state: Mapping[str, Any], entries: Mapping[str, Array], cost: Array, iterations: int) -> dict[str, PyTree]:
    """What is remembered after an update: of a round's first update on, the best; after its last, a batch more.

    Args:
      state: as `begin` made it.
      entries: what the update was made on, of the whole batch.
      cost: its loss. A round whose costs are all infinite or NaN ends with what it had last.
      iterations: updates in a round.

    Returns:
      The new state.
    """
    best, age, pool = state["best"], state["age"], state["pool"]
    before = jnp.where(age == 0, jnp.inf, best["cost"])
    better = (cost < before) | ~jnp.isfinite(before)
    kept = {name: jnp.where(better, x, best[name]).astype(best[name].dtype) for name, x in entries.items()}
    done = age + 1 >= iterations
    slots = pool[IMAGE].shape[0]
    slot = jnp.where(done, state["rounds"] % slots, slots)  # none, while the round goes on
    return {
        "age": jnp.where(done, 0, age + 1),
        "best": {"cost": jnp.where(better, cost, before).astype(jnp.float32), **kept},
        "pool": {name: pool[name].at[slot].set(kept[name], mode="drop") for name in pool},
        "rounds": state["rounds"] + done.astype(jnp.int32),
    }


def draw(state: Mapping[str, Any], key: Array, places: Array, image: Array, label: Array) -> dict[str, Array]:
    """The student's batch: for each example one of the pool's, each as likely as any other.

    Args:
      state: as `begin` made it.
      key: the same on every device; what is drawn for an example depends on its place alone.
      places: of the examples that are here ``[batch]``.
      image: what they get while the pool is empty ``[batch, ...]``: the images under way.
      label: their labels ``[batch]``.

    Returns:
      ``image`` and ``label``.
    """
    pool = state["pool"]
    slots, rows = pool[IMAGE].shape[:2]
    filled = jnp.minimum(state["rounds"], slots)

    def one(place: Array) -> Array:
        return jax.random.randint(jax.random.fold_in(key, place), (), 0, jnp.maximum(filled, 1) * rows)

    chosen = jax.vmap(one)(places)

    def of(name: str, now: Array) -> Array:
        whole = pool[name].reshape(slots * rows, *pool[name].shape[2:])
        return jnp.where(filled > 0, whole[chosen], now.astype(whole.dtype))

    return {IMAGE: of(IMAGE, jax.lax.stop_gradient(image)), LABEL: of(LABEL, label)}
