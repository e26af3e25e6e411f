"""`Resident` of a dict of arrays: labels of any kind, or none."""

import numpy as np
import pytest

from jaxkd import data

SETS = {
    "multi-hot labels": {"image": np.ones((5, 2, 2, 1)), "label": np.eye(5, 7)},
    "a label for each token": {"tokens": np.ones((5, 3), int), "label": np.ones((5, 3), int)},
    "a label for each pixel": {"image": np.ones((5, 2, 2, 1)), "label": np.ones((5, 2, 2), int)},
    "no labels": {"x": np.arange(5.0)},
    "an index of its own": {"x": np.arange(5.0), "index": np.arange(5) + 100},
}


@pytest.mark.parametrize("arrays", SETS.values(), ids=SETS)
def test_a_dict_of_arrays_is_a_set(arrays):
    batch = next(data.Resident(arrays, batch_size=2, shuffle=False).batches())
    for name, array in arrays.items():
        np.testing.assert_array_equal(batch[name], np.asarray(array[:2], batch[name].dtype))
    assert batch["index"].tolist() == arrays.get("index", np.arange(5))[:2].tolist()


def test_arrays_of_other_lengths_are_named():
    with pytest.raises(ValueError, match=r"same number of rows in every array, got \{'x': 3, 'y': 4\}"):
        data.Resident({"x": np.ones(3), "y": np.ones(4)}, batch_size=2)


def test_what_is_no_set_is_named():
    with pytest.raises(TypeError, match=r"expected a Dataset.*or a dict of arrays.*got ndarray"):
        data.Resident(np.ones(3), batch_size=2)  # type: ignore[arg-type]


@pytest.mark.parametrize("strings", [np.array(["cat", "dog"]), np.array([b"a", b"b"]), np.array([None, "a"])], ids=str)
def test_strings_are_named_with_their_cure(strings):
    with pytest.raises(TypeError, match=r"'label': expected numbers.*np\.unique.*jaxkd\.data\.text"):
        data.Resident({"x": np.ones(2), "label": strings}, batch_size=2)
