"""Data sets of recordings as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxkd._core.arrays.casts import cast
from jaxkd.data._dataset import arrays_of


def recordings(dataset: Any, *, audio: str = "audio", samples: int | None = None) -> dict[str, np.ndarray]:
    """Reads all recordings of a set as one array, padded at the end.

    Args:
      dataset: an object with ``len(dataset)`` and ``dataset[i]``, a dict, as from `jaxkd.data.source`. A recording has
        one channel. It is bytes of little-endian int16; integers of a signed type, of which the lowest becomes -1 (TFDS
        stores 16 bits as int64: where the values of the whole set fit into int16, they count as int16); or
        floating-point numbers from -1 to 1.
      audio: the set's name of the recordings.
      samples: length of a row. By default, that of the longest recording.

    Returns:
      Arrays for `jaxkd.data.Resident` and `Concatenated`: ``audio`` float32 ``[examples, samples]``, ``audio_length``
      int32 ``[examples]``, and the set's other entries that are numbers or arrays of one shape; text and bytes are left
      out.

    Raises:
      ValueError: there are no examples, or no such entry; a recording is empty, longer than ``samples``, has several
        channels, or values that are no samples.

    >>> rows = [{"audio": np.array([0, 16384], "<i2").tobytes(), "label": 3}, {"audio": np.array([0.25]), "label": 1}]
    >>> found = recordings(rows)
    >>> found["audio"].tolist(), found["audio_length"].tolist(), found["label"].tolist()
    ([[0.0, 0.5], [0.25, 0.0]], [2, 1], [3, 1])
    """
    examples = [dataset[i] for i in range(len(dataset))]
    if not examples:
        raise ValueError("recordings, dataset: expected at least one example, got none.")
    if audio not in examples[0]:
        raise ValueError(f"recordings, audio: the examples have no entry {audio!r}, only {sorted(examples[0])}.")
    read = [_read(number, example[audio]) for number, example in enumerate(examples)]
    # One recording may be quiet: its own values do not tell the type.
    narrow = all(_within(values, 16) for values in read if values.dtype.kind == "i")
    rows = [_scaled(number, values, narrow) for number, values in enumerate(read)]
    lengths = np.array([len(row) for row in rows], np.int32)
    samples = int(lengths.max()) if samples is None else samples
    if (over := lengths > samples).any():
        raise ValueError(
            f"recordings, samples: {int(over.sum())} of {len(rows)} recordings are longer than {samples} samples, the "
            f"longest ({int(lengths.argmax())}) has {int(lengths.max())}. Give more samples, or leave those out: "
            "recordings([row for row in dataset if ...])."
        )
    found = np.zeros((len(rows), samples), np.float32)
    for row, values in zip(found, rows, strict=True):
        row[: len(values)] = values
    others = {
        name: [example[name] for example in examples]
        for name, value in examples[0].items()
        if name != audio and not isinstance(value, str | bytes)
    }
    taken = sorted({"audio", "audio_length"} & others.keys())
    if taken:
        raise ValueError(f"recordings: expected no other entry named {taken}, which hold the recordings.")
    return arrays_of({"audio": found, "audio_length": lengths, **{k: cast(np.asarray(v)) for k, v in others.items()}})


def hold_out(
    arrays: Mapping[str, Any], **fields: int | Iterable[int]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Separates the examples with given values, such as those of a speaker.

    Args:
      arrays: a set of arrays with one row per example.
      **fields: for an entry of the set, the value or values to hold out.

    Returns:
      All other examples, and those held out: which have one of the values in every field. Both keep the order, and
      ``index``, the position in the whole set.

    Raises:
      ValueError: the set has no such entry, or one of the two parts is empty.

    >>> kept, held = hold_out({"speaker": np.array([0, 1, 2, 1])}, speaker=1)
    >>> kept["index"].tolist(), held["index"].tolist()
    ([0, 2], [1, 3])
    """
    whole = arrays_of(arrays)
    if not fields:
        raise ValueError(f"hold_out, fields: expected the values of an entry, such as speaker=[5], of {sorted(whole)}.")
    held = np.ones(len(whole["index"]), bool)
    for name, values in fields.items():
        if name not in whole:
            raise ValueError(f"hold_out: the set has no entry {name!r}, only {sorted(whole)}.")
        held &= np.isin(whole[name], np.asarray(values if isinstance(values, Iterable) else [values]))
    if held.all() or not held.any():
        raise ValueError(
            f"hold_out: expected examples with {fields} and others, got {int(held.sum())} with, {int((~held).sum())} "
            "without."
        )
    return tuple({name: value[rows] for name, value in whole.items()} for rows in (~held, held))  # type: ignore[return-value]


def _read(number: int, recording: Any) -> np.ndarray:
    """Returns the samples of a recording as they are stored."""
    if isinstance(recording, bytes):
        if len(recording) % 2:
            raise ValueError(f"recording {number}: expected bytes of int16, got {len(recording)}, an odd number.")
        recording = np.frombuffer(recording, "<i2")
    values = np.asarray(recording)
    if values.ndim == 2 and 1 in values.shape:
        values = values.reshape(-1)
    if values.ndim != 1 or not values.size:
        raise ValueError(
            f"recording {number}: expected at least one sample of one channel, got {values.dtype}{list(values.shape)}."
            + (" Take the mean of the channels, or one of them." if values.ndim == 2 else "")
        )
    return values


def _scaled(number: int, values: np.ndarray, narrow: bool) -> np.ndarray:
    """Returns a recording from -1 to 1; integers are `narrow` if they have 16 bits."""
    if values.dtype.kind == "i":
        bits = 8 * values.dtype.itemsize
        if bits == 64 and not narrow:
            raise ValueError(
                f"recording {number}: int64 does not tell the range of samples, and those of the set do not fit into "
                "int16. Divide them by their largest possible value first, such as 2 ** 31."
            )
        return (values / 2.0 ** ((min(bits, 16) if narrow else bits) - 1)).astype(np.float32)
    if values.dtype.kind != "f" or not np.isfinite(values).all() or np.abs(values).max() > 1:
        seen = f", from {values.min()} to {values.max()}" if values.dtype.kind in "fu" else ""
        raise ValueError(
            f"recording {number}: expected bytes of int16, signed integers, or finite numbers from -1 to 1, got "
            f"{values.dtype}{list(values.shape)}{seen}. Scale or convert it first."
        )
    return values.astype(np.float32)


def _within(values: Sequence[int] | np.ndarray, bits: int) -> bool:
    return bool(np.min(values) >= -(2 ** (bits - 1)) and np.max(values) < 2 ** (bits - 1))
