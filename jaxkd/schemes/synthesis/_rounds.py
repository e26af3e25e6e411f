"""Rounds of updates that improve a batch of images for the student's pool.

One step of training makes one update of the images, or of the generator that makes them, and the student trains on the
pool. The state has one structure, so that an interrupted run resumes anywhere in a round.

Images and pool are the same on every device. A device updates the rows of its own examples, which it finds by their
position among the unmasked examples of the whole batch (`jaxkd._core.axes.positions`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.schemes.synthesis._contract import IMAGE, LABEL, total
from jaxkd.types import Array, PyTree


def check(caller: str, iterations: int, slots: int) -> None:
    """Raises unless the numbers of iterations and of slots are positive."""
    for name, number in (("iterations", iterations), ("slots", slots)):
        if number < 1:
            raise ValueError(f"{caller}, {name}: expected at least 1, got {number}.")


def begin(entries: Mapping[str, Any], slots: int) -> dict[str, PyTree]:
    """Returns the state before the first round.

    Args:
      entries: shapes ``[batch, ...]`` of the entries that a round makes, ``image`` and ``label`` among them.
      slots: size of the pool, in batches.

    Returns:
      ``age``, number of updates in this round; ``best``, entries and ``cost`` of the round's update with the lowest
      cost; ``pool``, images and labels of earlier rounds; ``rounds``, number of finished rounds.
    """

    def empty(*lead: int, of: Any) -> Array:
        return jnp.zeros((*lead, *of.shape), of.dtype)

    return {
        "age": jnp.zeros((), jnp.int32),
        "best": {"cost": jnp.full((), jnp.inf, jnp.float32), **{k: empty(of=x) for k, x in entries.items()}},
        "pool": {name: empty(slots, of=entries[name]) for name in (IMAGE, LABEL)},
        "rounds": jnp.zeros((), jnp.int32),
    }


def check_size(caller: str, rows: int, size: int, mask: Array | None, axis_name: str | None) -> None:
    """Raises unless the whole batch, over all devices, has `rows` examples."""
    size *= 1 if axis_name is None else jax.lax.axis_size(axis_name)
    if size != rows if mask is None else size < rows:
        raise ValueError(
            f"{caller}: expected batches of {rows} examples, as the one at init, got {size}. All batches need the same "
            "size, as those of jaxkd.data.Noise, because a round updates one batch of images."
        )


def collect(x: Array, places: Array, rows: int, mask: Array | None, axis_name: str | None) -> Array:
    """Gathers all devices' examples at their positions, ``[rows, ...]``.

    The result is a `psum` of zero-padded rows, rather than an `all_gather`, so that it is typed as equal on all
    devices.
    """
    at = places if mask is None else jnp.where(mask, places, rows)
    return total(jnp.zeros((rows, *x.shape[1:]), x.dtype).at[at].set(x, mode="drop"), axis_name)


def finish(state: Mapping[str, Any], entries: Mapping[str, Array], cost: Array, iterations: int) -> dict[str, PyTree]:
    """Returns the state after an update.

    The entries (of the whole batch, before the update) with the lowest cost of a round enter the pool after the round's
    last update. A round in which no cost is finite ends with its last entries.
    """
    best, age, pool = state["best"], state["age"], state["pool"]
    before = jnp.where(age == 0, jnp.inf, best["cost"])
    better = (cost < before) | ~jnp.isfinite(before)  # so that a round without finite costs still yields images
    kept = {name: jnp.where(better, x, best[name]).astype(best[name].dtype) for name, x in entries.items()}
    done = age + 1 >= iterations
    slots = pool[IMAGE].shape[0]
    slot = jnp.where(done, state["rounds"] % slots, slots)  # out of range, so dropped, while the round lasts
    return {
        "age": jnp.where(done, 0, age + 1),
        "best": {"cost": jnp.where(better, cost, before).astype(jnp.float32), **kept},
        "pool": {name: pool[name].at[slot].set(kept[name], mode="drop") for name in pool},
        "rounds": state["rounds"] + done.astype(jnp.int32),
    }


def draw(state: Mapping[str, Any], key: Array, places: Array, image: Array, label: Array) -> dict[str, Array]:
    """Draws the student's batch uniformly from the pool.

    Each draw depends on the key, which is equal on all devices, and on the example's position in ``places`` only. While
    the pool is empty, the current ``image`` and ``label`` are returned.
    """
    pool = state["pool"]
    slots, rows = pool[IMAGE].shape[:2]
    filled = jnp.minimum(state["rounds"], slots)

    def draw_row(place: Array) -> Array:
        return jax.random.randint(jax.random.fold_in(key, place), (), 0, jnp.maximum(filled, 1) * rows)

    chosen = jax.vmap(draw_row)(places)

    def rows_of(name: str, current: Array) -> Array:
        whole = pool[name].reshape(slots * rows, *pool[name].shape[2:])
        return jnp.where(filled > 0, whole[chosen], current.astype(whole.dtype))

    return {IMAGE: rows_of(IMAGE, jax.lax.stop_gradient(image)), LABEL: rows_of(LABEL, label)}
