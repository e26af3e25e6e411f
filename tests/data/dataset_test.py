"""Sets in memory: the digits, splits, and sets from arrays."""

import numpy as np
import pytest

from jaxkd import data
from jaxkd._core.checks import require


def test_digits_keep_every_gray_level():
    from sklearn.datasets import load_digits

    raw = load_digits()
    dataset = data.digits()
    image = dataset.arrays["image"]
    assert image.dtype == np.uint8 and image.shape == (1797, 8, 8, 1)
    np.testing.assert_array_equal(np.round(image[..., 0] / 255 * 16), raw.images)
    np.testing.assert_array_equal(dataset.arrays["label"], raw.target)
    assert dataset.num_classes == 10 and dataset.class_names == tuple("0123456789")
    assert {key: value.dtype for key, value in dataset.arrays.items() if key != "image"} == {
        "label": np.int32,
        "index": np.int32,
    }


def test_digits_splits_are_disjoint_and_complete():
    parts = {name: data.load("digits", name) for name in data.DIGITS_SPLITS}
    assert {name: data.num_examples(part) for name, part in parts.items()} == data.DIGITS_SPLITS
    together = np.concatenate([part.arrays["index"] for part in parts.values()])
    np.testing.assert_array_equal(np.sort(together), np.arange(1797))
    # Published numbers refer to these splits, so that they must never change.
    assert parts["test"].arrays["index"][:8].tolist() == [8, 11, 13, 19, 23, 24, 25, 26]


def test_unknown_digits_split_raises_with_the_known_ones():
    with pytest.raises(ValueError, match=r"\['train', 'validation', 'test', 'all'\], got 'dev'"):
        data.load("digits", "dev")


@pytest.mark.parametrize("parts", [[100, 300, 1397], [1, 1], [0.5, 0.25, 0.25], [0.1], [17, 1000]])
@pytest.mark.parametrize("seed", [0, 1])
def test_split_is_stratified(parts, seed):
    whole = data.digits()
    share = np.bincount(whole.arrays["label"]) / 1797
    divided = data.split(whole, parts, seed=seed)
    seen = np.concatenate([part.arrays["index"] for part in divided])
    assert len(set(seen.tolist())) == len(seen)
    for part, size in zip(divided, parts, strict=True):
        examples = size if isinstance(size, int) else size * 1797
        assert abs(data.num_examples(part) - examples) <= 1
        counts = np.bincount(part.arrays["label"], minlength=10)
        np.testing.assert_array_less(np.abs(counts - share * data.num_examples(part)), 2)
        np.testing.assert_array_equal(part.arrays["image"], whole.arrays["image"][part.arrays["index"]])
        assert np.all(np.diff(part.arrays["index"]) > 0)


def test_split_depends_on_the_seed_only():
    whole = data.digits()
    first, again, other = (data.split(whole, [200], seed=seed)[0].arrays["index"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert set(first.tolist()) != set(other.tolist())


def test_split_of_a_split_keeps_the_original_index():
    train = data.load("digits", "train")
    (few,) = data.split(train, [50], seed=0)
    assert set(few.arrays["index"].tolist()) <= set(train.arrays["index"].tolist())
    np.testing.assert_array_equal(few.arrays["image"], data.digits().arrays["image"][few.arrays["index"]])


def test_split_without_stratification():
    (part,) = data.split(data.digits(), [500], seed=0, stratified=False)
    assert data.num_examples(part) == 500


@pytest.mark.parametrize("parts", [[], [0], [1000, 1000], [0.7, 0.7], [10, 0.5], [-1]])
def test_invalid_parts_raise(parts):
    with pytest.raises(ValueError, match="parts: expected"):
        data.split(data.digits(), parts, seed=0)


def test_from_arrays_raises_for_invalid_arrays():
    image = np.zeros((3, 2, 2, 1), np.uint8)
    with pytest.raises(ValueError, match="same number of rows"):
        data.from_arrays(image, [0, 1])
    with pytest.raises(ValueError, match="0 to 1, got 0 to 2"):
        data.from_arrays(image, [0, 1, 2], num_classes=2)
    with pytest.raises(ValueError, match="label: expected integers"):
        data.from_arrays(image, [0.0, 1.0, 2.0])


def test_missing_library_raises_with_the_package_to_install():
    with pytest.raises(ImportError, match=r'Reading needs .*not_there.*pip install "jaxkd-toolkit\[data\]"'):
        require("jaxkd_not_there.module", purpose="Reading")
