"""`from_batches`: any function that returns an epoch's batches is an input."""

import itertools

import numpy as np
import pytest

from jaxkd import data


def numbers(epoch):
    return ({"x": np.full((2, 1), 10 * epoch + i)} for i in range(3))


def drawn(iterator, count):
    return [int(batch["x"][0, 0]) for batch in itertools.islice(iterator, count)]


def test_epochs_follow_each_other_and_a_position_is_resumed():
    loader = data.from_batches(numbers, 3)
    iterator = loader.batches()
    assert drawn(iterator, 5) == [0, 1, 2, 10, 11]
    assert iterator.get_state() == {"step": 5}
    assert drawn(loader.batches(iterator.get_state()), 3) == drawn(iterator, 3) == [12, 20, 21]
    iterator.set_state({"step": 1})
    assert drawn(iterator, 2) == [1, 2]


def test_longer_epochs_are_cut_and_epochs_end():
    assert drawn(data.from_batches(numbers, 2, epochs=2).batches(), 9) == [0, 1, 10, 11]


def test_a_function_without_an_argument():
    assert drawn(data.from_batches(lambda: numbers(0), 3).batches(), 4) == [0, 1, 2, 0]


def test_batches_that_are_tuples_are_named():
    with pytest.raises(TypeError, match="expected batches as dicts of arrays, got tuple"):
        data.from_batches(lambda: [(np.zeros(2), np.zeros(2))], 1)


@pytest.mark.parametrize("options", [{"steps_per_epoch": 0}, {"steps_per_epoch": 1, "epochs": 0}])
def test_sizes_are_positive(options):
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        data.from_batches(numbers, **options)


@pytest.mark.parametrize("kind", [iter, lambda batches: (batch for batch in batches)])
def test_an_iterator_that_was_read_before_is_refused(kind):
    batches = kind([{"x": np.full((2, 1), i)} for i in range(9)])
    loader = data.from_batches(lambda: batches, 3)
    with pytest.raises(ValueError, match=r"expected a new iterator at each call.*lambda: iter\(dataset\)"):
        next(loader.batches())
