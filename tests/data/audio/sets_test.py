"""Recordings of every form as one array, and what is refused."""

import os
import pathlib

import numpy as np
import pytest

from jaxkd import data
from jaxkd.data import audio

PCM = np.array([-32768, 0, 16384, 32767], "<i2")


@pytest.mark.parametrize(
    ("recording", "expected"),
    [
        (PCM.tobytes(), [-1, 0, 0.5, 32767 / 32768]),
        (PCM, [-1, 0, 0.5, 32767 / 32768]),
        (PCM.astype(np.int64), [-1, 0, 0.5, 32767 / 32768]),  # as TFDS stores 16 bits
        (PCM[:, None], [-1, 0, 0.5, 32767 / 32768]),  # one channel with an axis of its own
        (np.array([2**31 - 1, -(2**30)], np.int32), [1, -0.5]),
        (np.array([-128, 64], np.int8), [-1, 0.5]),
        (np.array([-1.0, 0.25]), [-1, 0.25]),
    ],
)
def test_every_form_of_samples(recording, expected):
    found = audio.recordings([{"sound": recording, "label": 7}], audio="sound")
    np.testing.assert_allclose(found["audio"], [expected], atol=1e-9)
    assert found["audio"].dtype == np.float32 and found["audio_length"].dtype == np.int32


def test_the_type_of_integers_is_that_of_the_whole_set():
    """A quiet recording, whose values would fit into int16, has the scale of a loud one."""
    rows = [{"audio": np.array(values, np.int32)} for values in ([2**30], [2**14])]
    np.testing.assert_array_equal(audio.recordings(rows)["audio"], [[0.5], [2.0**-17]])


def test_rows_are_padded_and_other_numbers_are_kept():
    rows = [{"audio": np.ones(n, np.float32) / 2, "label": n, "id": "x", "point": [n, 1.0]} for n in (2, 3, 1)]
    found = audio.recordings(rows, samples=4)
    assert found["audio"].tolist() == [[0.5, 0.5, 0, 0], [0.5, 0.5, 0.5, 0], [0.5, 0, 0, 0]]
    assert found["audio_length"].tolist() == [2, 3, 1] and found["label"].tolist() == [2, 3, 1]
    assert found["point"].dtype == np.float32 and "id" not in found
    assert next(iter(data.Resident(found, 3, shuffle=False)))["audio"].shape == (3, 4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one example"),
        ([{"sound": PCM}], r"no entry 'audio', only \['sound'\]"),
        ([{"audio": b""}], "recording 0: expected at least one sample"),
        ([{"audio": PCM}, {"audio": b"abc"}], "recording 1: expected bytes of int16, got 3"),
        ([{"audio": np.zeros((8, 2), np.int16)}], "one channel, got int16.*mean of the channels"),
        ([{"audio": np.array([128, 255], np.uint8)}], "got uint8"),
        ([{"audio": np.array([1])}, {"audio": np.array([2**16])}], "recording 0: int64 does not tell .* 2 .. 31"),
        ([{"audio": np.array([0.5, 1.5])}], "from 0.5 to 1.5.*Scale"),
        ([{"audio": np.array([0.5, np.nan])}], "finite numbers"),
        ([{"audio": PCM, "audio_length": 3}], "no other entry"),
    ],
)
def test_what_is_no_recording_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        audio.recordings(rows)


def test_recordings_are_never_cut():
    with pytest.raises(ValueError, match=r"1 of 2 recordings are longer than 3 samples, the longest \(1\) has 4"):
        audio.recordings([{"audio": PCM[:2]}, {"audio": PCM}], samples=3)


def test_held_out_examples_have_all_values():
    arrays = {"speaker": np.array([0, 1, 1, 2]), "take": np.array([0, 0, 1, 0])}
    kept, held = audio.hold_out(arrays, speaker=(1, 2), take=0)
    assert kept["index"].tolist() == [0, 2] and held["index"].tolist() == [1, 3] and held["speaker"].tolist() == [1, 2]
    again, _ = audio.hold_out(kept, speaker=1)
    assert again["index"].tolist() == [0]  # the position in the whole set
    for fields, message in (
        ({}, "expected the values"),
        ({"room": 1}, "no entry 'room'"),
        ({"speaker": 7}, "got 0 with"),
        ({"speaker": (0, 1, 2)}, "0 without"),
    ):
        with pytest.raises(ValueError, match=message):
            audio.hold_out(arrays, **fields)


def test_spoken_digits():
    data_dir = os.environ.get("JAXKD_DATA_DIR")
    if not data_dir or not (pathlib.Path(data_dir) / "free_spoken_digits").is_dir():
        pytest.skip("needs free_spoken_digits: set JAXKD_DATA_DIR to a TFDS data_dir that holds it")
    found = audio.recordings(data.source("free_spoken_digits", "test", data_dir))
    assert found["audio"].shape == (300, found["audio_length"].max()) and np.abs(found["audio"]).max() > 0.5
    kept, held = audio.hold_out(found, speaker=5)
    assert len(kept["label"]) == 250 and np.bincount(held["label"]).tolist() == [5] * 10
