"""Log-mel features against a NumPy reference and a tone computed by hand; padding never matters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.data import audio

RATE = 8000


def reference(wave, size, step, bands, low, high, floor, points):
    """Log-mel features of one recording from the formulas, in float64 and by loops."""
    mel = lambda f: 2595 * np.log10(1 + f / 700)  # noqa: E731
    hertz = lambda m: 700 * (10 ** (m / 2595) - 1)  # noqa: E731
    corners = [hertz(mel(low) + (mel(high) - mel(low)) * i / (bands + 1)) for i in range(bands + 2)]
    frames = []
    for start in range(0, len(wave), step):
        piece = np.zeros(size)
        piece[: len(wave[start : start + size])] = wave[start : start + size]
        piece *= [0.5 * (1 - np.cos(2 * np.pi * n / size)) for n in range(size)]
        n = np.arange(points)
        row = []
        power = [
            abs(np.sum(np.pad(piece, (0, points - size)) * np.exp(-2j * np.pi * k * n / points))) ** 2
            for k in range(points // 2 + 1)
        ]
        for left, center, right in zip(corners, corners[1:], corners[2:], strict=False):
            energy = 0.0
            for k, value in enumerate(power):
                f = k * RATE / points
                if left <= f <= center:
                    energy += value * (f - left) / (center - left)
                elif center < f <= right:
                    energy += value * (right - f) / (right - center)
            row.append(np.log(max(energy, floor)))
        frames.append(row)
    return np.array(frames)


def test_reference():
    wave = np.random.default_rng(0).normal(size=310) * 0.1
    found = audio.log_mel(
        jnp.asarray(wave[None], jnp.float32),
        sample_rate=RATE,
        bands=9,
        window=0.012,
        hop=0.01,
        min_frequency=50,
        max_frequency=3500,
        floor=1e-4,
    )
    expected = reference(wave, 96, 80, 9, 50, 3500, 1e-4, 128)
    assert found.features.shape == (1, 4, 9) and found.mask.all()
    np.testing.assert_allclose(found.features[0], expected, rtol=2e-5, atol=2e-5)


def test_tone_by_hand():
    """A tone on point 8 of 64: Hann gives (64 / 4)² there and (64 / 8)² at both neighbors, for amplitude 1."""
    wave = np.sin(2 * np.pi * 8 * np.arange(64) / 64)[None]
    low, high = 750.0, 1250.0  # one band around the points at 875, 1000 and 1125 Hz
    found = audio.log_mel(
        jnp.asarray(wave, jnp.float32),
        sample_rate=RATE,
        bands=1,
        window=0.008,
        hop=0.008,
        min_frequency=low,
        max_frequency=high,
    )
    middle = 700 * (np.sqrt((1 + low / 700) * (1 + high / 700)) - 1)  # halfway in mel
    assert 875 < middle < 1000
    weights = (875 - low) / (middle - low), (high - 1000) / (high - middle), (high - 1125) / (high - middle)
    energy = 64 * weights[0] + 256 * weights[1] + 64 * weights[2]
    np.testing.assert_allclose(found.features[0, 0, 0], np.log(energy), rtol=1e-5)


def test_features_of_a_recording_do_not_depend_on_its_padding():
    generator = np.random.default_rng(1)
    wave = generator.normal(size=(1, 1000)).astype(np.float32)
    features = jax.jit(functools.partial(audio.log_mel, sample_rate=RATE, bands=8))
    alone = features(wave)
    rubbish = generator.normal(size=(3, 1700)).astype(np.float32)
    rubbish[1, :1000] = wave[0]
    found = features(rubbish, jnp.array([1700, 1000, 40]))
    assert alone.features.shape == (1, 13, 8) and found.features.shape == (3, 22, 8)
    assert found.mask.sum(axis=1).tolist() == [22, 13, 1]
    np.testing.assert_allclose(found.features[1, :13], alone.features[0], rtol=1e-6)
    assert not found.features[1, 13:].any()


def test_samples_between_two_windows_are_in_no_frame():
    wave = np.random.default_rng(2).normal(size=(1, 300)).astype(np.float32)
    options = {"sample_rate": RATE, "bands": 4, "window": 0.008, "hop": 0.02, "min_frequency": 100.0}
    found = audio.log_mel(wave, **options).features
    assert found.shape == (1, 2, 4)
    wave[:, 64:160] = 7
    np.testing.assert_allclose(audio.log_mel(wave, **options).features, found, rtol=1e-6)


def test_silence_is_the_floor_with_finite_gradients():
    features = functools.partial(audio.log_mel, sample_rate=RATE, bands=8, floor=1e-3)
    np.testing.assert_allclose(features(jnp.zeros((1, 400))).features, np.log(1e-3), rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: features(x).features.sum())(jnp.zeros((1, 400)))).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"audio": jnp.zeros(8)}, r"\[batch, samples\], got float32\[8\]"),
        ({"audio": jnp.zeros((1, 8), jnp.int16)}, "got int16"),
        ({"hop": 0.0}, "at least one sample"),
        ({"max_frequency": 4001.0}, "4000 Hz, half"),
        ({"min_frequency": 300.0, "max_frequency": 200.0}, "300 and 200"),
        ({"bands": 120}, "of 120 bands contain no point of the DFT"),
        ({"audio_length": jnp.zeros((2, 1))}, "one number for each"),
    ],
)
def test_impossible_features_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        audio.log_mel(**{"audio": jnp.zeros((1, 8)), "sample_rate": RATE, **arguments})
