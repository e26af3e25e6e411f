"""Strings of recordings, made on the device from the number of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core.batches import exclude
from jaxkd.data import _fingerprint
from jaxkd.data._dataset import arrays_of
from jaxkd.data._protocol import Batch
from jaxkd.data._resident import DeviceLoader, Resident
from jaxkd.data._transforms import example_keys

if TYPE_CHECKING:
    from jaxtyping import Array, Int


class Bank(NamedTuple):
    """Recordings on the device, sorted by group.

    Attributes:
      order: arrays of the loader that chooses the strings of a batch.
      audio: samples of all recordings, one after the other.
      tables: int32 ``[recordings]``: ``start`` and ``length`` in these samples, ``label``, ``index``, ``group``, and
        the ``first`` recording and the ``size`` of its group.
    """

    order: dict[str, Any]
    audio: Any
    tables: dict[str, Any]


class Concatenated(DeviceLoader):
    """A `Loader` of strings of recordings, such as spoken numbers of several digits.

    How many recordings a string has, which ones, and the pauses before each and after the last are drawn uniformly, as
    a function of the string's seed and ``index``, and of the ``epoch`` if strings are fresh: not of the order, the
    batch size or the devices. The samples lie on the device once, and a batch is gathered from them in the step. Parts
    at the end that do not fit into the row are left out of the audio and of the transcript.

    Args:
      recordings: arrays from `recordings`, with ``label`` integers ``[recordings]``.
      batch_size: strings in a batch.
      seed: seed of the order.
      strings: number of strings in an epoch.
      string_seed: seed of the strings.
      parts: fewest and most recordings in a string.
      pause: shortest and longest pause, in samples.
      samples: length of a row; by default, the longest possible string.
      together: name of an entry, integers, which all recordings of a string have in common, such as the speaker.
      fresh: whether each epoch has new strings. False repeats those of the first, for teachers that are cached and for
        `jaxkd.schemes.sequence_level`.
      shuffle: whether each epoch has a new order.
      drop_remainder: whether to leave out the last strings of an epoch when they do not fill a batch.
      epochs: number of epochs after which `batches` stops; None for no end.
      device: device or sharding of the recordings.

    Raises:
      ValueError: the recordings lack an entry, a size or range is invalid, or a recording does not fit into a row.

    Attributes:
      arrays: the recordings on the device. Pass them to jitted functions as an argument.
      batch_size, steps_per_epoch, num_examples, padded, seed, epochs: those of a `Resident` of as many strings.

    >>> from jaxkd.data.audio import recordings
    >>> rows = [{"audio": np.full(size, size / 8), "label": size} for size in (2, 3, 4)]
    >>> loader = Concatenated(recordings(rows), 1, strings=5, parts=(2, 2), pause=(1, 1), shuffle=False)
    >>> batch = next(iter(loader))
    >>> batch["label"].tolist(), batch["audio_length"].tolist()
    ([[4, 2]], [9])
    >>> batch["audio"][0].tolist()
    [0.0, 0.5, 0.5, 0.5, 0.5, 0.0, 0.25, 0.25, 0.0, 0.0, 0.0]
    """

    def __init__(
        self,
        recordings: Mapping[str, Any],
        batch_size: int,
        seed: int = 0,
        *,
        strings: int,
        string_seed: int = 0,
        parts: tuple[int, int] = (2, 4),
        pause: tuple[int, int] = (0, 0),
        samples: int | None = None,
        together: str | None = None,
        fresh: bool = True,
        shuffle: bool = True,
        drop_remainder: bool = False,
        epochs: int | None = None,
        device: jax.Device | jax.sharding.Sharding | None = None,
    ) -> None:
        whole = arrays_of(recordings)
        _check(whole, together, parts, pause)
        longest = int(np.max(whole["audio_length"]))
        samples = parts[1] * longest + (parts[1] + 1) * pause[1] if samples is None else samples
        if samples < longest + pause[1]:
            raise ValueError(
                f"Concatenated, samples: expected a row with a place for the longest recording and a pause, "
                f"{longest + pause[1]} samples, got {samples}."
            )
        self._order = Resident(
            {"index": np.arange(strings, dtype=np.int32)},
            batch_size,
            seed,
            shuffle=shuffle,
            drop_remainder=drop_remainder,
            device=device,
        )
        self.batch_size, self.steps_per_epoch = batch_size, self._order.steps_per_epoch
        self.num_examples, self.padded = strings, self._order.padded
        self.seed, self.epochs = seed, epochs
        self._settings: dict[str, Any] = {
            "string_seed": string_seed,
            "parts": list(parts),
            "pause": list(pause),
            "samples": samples,
            "together": together,
            "fresh": fresh,
        }
        audio, tables = _bank(whole, together)
        self._content = _fingerprint.digest({"audio": audio, **tables})
        self.arrays = Bank(self._order.arrays, *jax.device_put((audio, tables), device))
        self._gather = jax.jit(self.gather)
        self._strings = jax.jit(self._of)

    def gather(self, arrays: Bank, step: Int[Array, ""] | int, *, seed: Any = None) -> Batch:
        """Returns the batch of a step, with the arguments of `Resident.gather`.

        The seed replaces that of the order. A batch has ``audio``, ``audio_length``, ``label``, ``label_mask``,
        ``parts``, ``index``, ``epoch``, and ``mask`` if `padded`; with ``together``, also that entry ``[batch]``.
        """
        batch = self._order.gather(arrays.order, step, seed=seed)
        mask = batch.pop("mask", None)
        batch = {**batch, **self._of(arrays, batch["index"], batch["epoch"])}
        return batch if mask is None else exclude(batch, mask)

    def take(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Returns strings by their ``index``, as `jaxkd.cache.write_cache` reads them.

        Raises:
          ValueError: each epoch has new strings, so that the index alone decides none.
        """
        if self._settings["fresh"]:
            raise ValueError(
                "Concatenated, take: each epoch has new strings, so that an index decides none. Make the loader with "
                "fresh=False to read or cache them."
            )
        index = jnp.asarray(rows, jnp.int32)
        return {"index": np.asarray(index)} | jax.device_get(self._strings(self.arrays, index, jnp.zeros_like(index)))

    def fingerprint(self) -> dict[str, Any]:
        """Returns the settings and digests by which a resumed run recognizes its input."""
        return self._order.fingerprint() | {"strings": self._settings, "content": self._content}

    def _of(self, arrays: Bank, index: Any, epoch: Any) -> dict[str, Any]:
        """Returns the strings with given indices."""
        settings, tables = self._settings, arrays.tables
        (fewest, most), pause, samples = settings["parts"], settings["pause"], settings["samples"]
        drawn = {"index": index, "epoch": epoch if settings["fresh"] else jnp.zeros_like(epoch)}

        def draw(key: Any) -> tuple[Any, Any, Any]:
            of_count, of_first, of_others, of_pauses = jax.random.split(key, 4)
            count = jax.random.randint(of_count, (), fewest, most + 1)
            first = jax.random.randint(of_first, (1,), 0, len(tables["start"]))
            group = {name: tables[name][first] for name in ("first", "size")}
            others = group["first"] + jax.random.randint(of_others, (most - 1,), 0, group["size"])
            pauses = jax.random.randint(of_pauses, (most + 1,), pause[0], pause[1] + 1)
            return count, jnp.concatenate([first, others]), pauses

        count, chosen, pauses = jax.vmap(draw)(example_keys(drawn, seed=settings["string_seed"]))
        length = tables["length"][chosen]
        ends = jnp.cumsum(length + pauses[:, :-1], axis=1)
        kept = (jnp.arange(most)[None] < count[:, None]) & (ends <= samples)
        offset = ends - length
        # The parts are disjoint: at most one of them contains a sample, whose place in the bank is ``sample + shift``.
        sample, shift = jnp.arange(samples)[None], jnp.int32(0)
        inside = jnp.bool_(False)
        for part in range(most):
            begin, end = offset[:, part, None], ends[:, part, None]
            within = kept[:, part, None] & (sample >= begin) & (sample < end)
            shift = jnp.where(within, tables["start"][chosen[:, part]][:, None] - begin, shift)
            inside = inside | within
        place = jnp.where(inside, sample + shift, 0)
        kept_parts = jnp.sum(kept, axis=1)[:, None]
        last = jnp.take_along_axis(ends, kept_parts - 1, axis=1) + jnp.take_along_axis(pauses, kept_parts, axis=1)
        found = {
            "audio": jnp.where(inside, arrays.audio.at[place].get(mode="promise_in_bounds"), 0),
            "audio_length": jnp.minimum(last[:, 0], samples),
            "label": jnp.where(kept, tables["label"][chosen], 0),
            "label_mask": kept,
            "parts": jnp.where(kept, tables["index"][chosen], -1),
        }
        return found | ({settings["together"]: tables["group"][chosen[:, 0]]} if settings["together"] else {})


def _bank(whole: Mapping[str, np.ndarray], together: str | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the samples of all recordings and their tables, sorted by group."""
    group = np.zeros(len(whole["label"]), np.int32) if together is None else whole[together].astype(np.int32)
    order = np.argsort(group, kind="stable")
    length, group = whole["audio_length"][order].astype(np.int32), group[order]
    _, first, of_group, size = np.unique(group, return_index=True, return_inverse=True, return_counts=True)
    start = np.concatenate([[0], np.cumsum(length)[:-1]])
    audio = np.concatenate([whole["audio"][row, : whole["audio_length"][row]] for row in order])
    tables = {"start": start, "length": length, "label": whole["label"][order], "index": whole["index"][order]}
    tables |= {"group": group, "first": first[of_group], "size": size[of_group]}
    return audio.astype(np.float32), {name: value.astype(np.int32) for name, value in tables.items()}


def _check(
    whole: Mapping[str, np.ndarray], together: str | None, parts: tuple[int, int], pause: tuple[int, int]
) -> None:
    if missing := {"audio", "audio_length", "label", *([together] if together else [])} - whole.keys():
        raise ValueError(f"Concatenated, recordings: expected entries {sorted(missing)}, got {sorted(whole)}.")
    for name in ("label", *([together] if together else [])):
        if whole[name].ndim != 1 or whole[name].dtype.kind not in "iu":
            raise ValueError(
                f"Concatenated, {name!r}: expected integers [recordings], got {whole[name].dtype}"
                f"{list(whole[name].shape)}."
            )
    if not 1 <= parts[0] <= parts[1]:
        raise ValueError(f"Concatenated, parts: expected the fewest and the most recordings, at least 1, got {parts}.")
    if not 0 <= pause[0] <= pause[1]:
        raise ValueError(f"Concatenated, pause: expected the shortest and the longest, in samples, got {pause}.")
