"""Strings of recordings and their augmentation: exact transcripts, and the same bits wherever they are made."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data
from jaxkd.data import audio

SEED = 3
RANGES = {"parts": (1, 3), "pause": (2, 5), "samples": 30, "together": "speaker"}
ROWS = audio.recordings(
    [
        # The samples of a recording tell which one it is, and at which of them.
        {"audio": (100 * number + np.arange(5 + number % 4)) / 4096, "label": number % 10, "speaker": number % 3}
        for number in range(30)
    ]
)


@functools.cache
def loader(batch_size=7, **options):
    """Returns a loader, whose programs are compiled once for all tests."""
    return audio.Concatenated(ROWS, batch_size, 1, strings=24, **{**RANGES, **options})


def rows_of(batches, names=("audio", "audio_length", "label", "label_mask", "parts", "speaker")):
    """Returns the examples of batches by index and epoch."""
    found = {}
    for batch in map(jax.device_get, batches):
        for row in np.flatnonzero(batch.get("mask", np.ones(len(batch["index"]), bool))):
            key = int(batch["epoch"][row]), int(batch["index"][row])
            found[key] = {name: batch[name][row] for name in names if name in batch}
    return found


def same(first, second):
    assert first.keys() == second.keys()
    for key, row in first.items():
        for name, value in row.items():
            np.testing.assert_array_equal(value, second[key][name], err_msg=f"{key} {name}")


def epochs(chosen, count=1):
    iterator = chosen.batches()
    return [next(iterator) for _ in range(count * chosen.steps_per_epoch)]


def test_a_string_is_its_recordings_with_pauses_as_far_as_they_fit():
    counts, pauses = set(), set()
    for row in rows_of(epochs(loader(), 3)).values():
        kept = row["label_mask"]
        assert kept[0] and (np.diff(kept.astype(int)) <= 0).all()
        counts.add(int(kept.sum()))
        parts = row["parts"][kept]
        np.testing.assert_array_equal(ROWS["label"][parts], row["label"][kept])
        assert set(ROWS["speaker"][parts]) == {int(row["speaker"])}
        assert (row["parts"][~kept] == -1).all() and not row["label"][~kept].any()
        place, wave = 0, row["audio"]
        for part in parts:
            expected = ROWS["audio"][part, : ROWS["audio_length"][part]]
            begin = next(i for i in range(place, place + 6) if np.array_equal(wave[i : i + len(expected)], expected))
            assert not wave[place:begin].any()
            pauses.add(begin - place)
            place = begin + len(expected)
        assert not wave[place:].any() and place <= row["audio_length"] <= min(place + 5, 30)
    assert counts == {1, 2, 3} and pauses >= {2, 3, 4, 5}


def test_parts_that_do_not_fit_are_left_out():
    counts = [int(row["label_mask"].sum()) for row in rows_of(epochs(loader(parts=(3, 3)))).values()]
    assert set(counts) == {2, 3}  # three recordings of at most 8 samples and pauses of at most 5 take up to 39


def augment(batch, seed=SEED):
    return audio.add_noise(audio.change_speed(batch, seed=seed), seed=seed)


@pytest.mark.slow
def test_an_example_has_the_same_bits_in_every_batch_and_on_every_device():
    step = jax.jit(augment)
    whole = rows_of(map(step, epochs(loader(24), 2)))
    assert len(whole) == 48
    same(whole, rows_of(map(step, epochs(loader(5), 2))))
    same(rows_of(map(step, epochs(loader(1)))), {key: row for key, row in whole.items() if not key[0]})

    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.P("data"))
    copied = loader(8, device=jax.sharding.NamedSharding(mesh, jax.P()))
    sharded = jax.jit(lambda arrays, number: augment(copied.gather(arrays, number)), out_shardings=spread)
    same(whole, rows_of(sharded(copied.arrays, number) for number in range(6)))


def test_resumed_batches_and_repeated_strings():
    iterator = loader().batches()
    for _ in range(5):
        next(iterator)
    resumed = loader().batches(iterator.get_state())
    same(rows_of([next(iterator)]), rows_of([next(resumed)]))

    fixed, moved = rows_of(epochs(loader(fresh=False), 2)), rows_of(epochs(loader(), 2))
    for number in range(24):
        same({0: fixed[0, number]}, {0: fixed[1, number]})
        same({0: fixed[0, number]}, {0: moved[0, number]})
    assert any(not np.array_equal(moved[0, n]["audio"], moved[1, n]["audio"]) for n in range(24))


def test_cached_teachers_read_strings_by_index():
    fixed = loader(fresh=False)
    taken, found = fixed.take([7, 3]), rows_of(epochs(fixed))
    for position, number in enumerate((7, 3)):
        for name in ("audio", "label", "parts"):
            np.testing.assert_array_equal(taken[name][position], found[0, number][name])
    with pytest.raises(ValueError, match="fresh=False"):
        loader().take([0])


def test_fingerprint_and_protocol():
    one = loader()
    prints = [loader(**options).fingerprint() for options in ({}, {"string_seed": 5}, {"fresh": False})]
    assert one.fingerprint() == prints[0] and prints[0] not in prints[1:]
    assert one.steps_per_epoch == 4 and one.padded and epochs(one)[-1]["mask"].sum() == 3
    assert isinstance(one, data.Loader)


@pytest.mark.slow
def test_another_seed_has_other_strings():
    first, second = rows_of(epochs(loader())), rows_of(epochs(loader(string_seed=5)))
    assert any(not np.array_equal(first[key]["audio"], second[key]["audio"]) for key in first)


def test_noise_has_the_stated_level():
    wave = np.sin(np.arange(20000) / 3)[None].repeat(2, axis=0).astype(np.float32)
    batch = {
        "audio": wave,
        "audio_length": jnp.array([20000, 10000]),
        "index": jnp.arange(2),
        "epoch": jnp.zeros(2, int),
    }
    for snr in (0.0, 20.0):
        noise = audio.add_noise(batch, seed=0, snr=(snr, snr))["audio"] - wave * (np.arange(20000) < [[20000], [10000]])
        power = np.sum(np.square(noise), axis=1) / batch["audio_length"]
        np.testing.assert_allclose(10 * np.log10(0.5 / power), snr, atol=0.15)
    first, second = (audio.add_noise(batch, seed=0, view=view)["audio"] for view in (0, 1))
    assert not np.array_equal(first, second)


def test_speed_changes_length_and_pitch():
    wave = np.sin(2 * np.pi * np.arange(4000) / 40)[None].astype(np.float32)
    batch = {"audio": wave, "audio_length": jnp.array([3001]), "index": jnp.array([2]), "epoch": jnp.array([1])}
    slow = audio.change_speed(batch, seed=0, speed=(0.8, 0.8))
    assert slow["audio"].shape == (1, 5000) and slow["audio_length"].tolist() == [3751]
    expected = np.sin(2 * np.pi * np.arange(3751) / 50)
    np.testing.assert_allclose(slow["audio"][0, :3751], expected, atol=0.01)
    assert not slow["audio"][0, 3751:].any()
    drawn = audio.change_speed(batch, seed=0, speed=(0.9, 1.1))
    assert 2728 <= drawn["audio_length"].item() <= 3334 and drawn["audio"].shape == (1, 4445)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": (0, 2)}, "fewest and the most"),
        ({"pause": (3, 1)}, "shortest and the longest"),
        ({"samples": 12}, "longest recording and a pause, 13 samples, got 12"),
        ({"together": "room"}, r"expected entries \['room'\]"),
        ({"together": "audio"}, r"'audio': expected integers"),
    ],
)
def test_impossible_strings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        loader(**options)


@pytest.mark.parametrize(
    ("transform", "options", "message"),
    [
        (audio.add_noise, {"snr": (5, 1)}, "snr"),
        (audio.change_speed, {"speed": (0, 1)}, "speed"),
    ],
)
def test_impossible_augmentation_is_refused(transform, options, message):
    batch = {"audio": jnp.zeros((1, 4)), "audio_length": jnp.array([4])}
    with pytest.raises(ValueError, match=message):
        functools.partial(transform, seed=0, **options)(batch)
    with pytest.raises(ValueError, match=r"no .*audio_length"):
        transform({"audio": jnp.zeros((1, 4))}, seed=0)
