"""`fit` on the batches of a function: the numbers of the resident run, also when resumed within an epoch."""

import jax
import numpy as np
import pytest

from jaxkd import data
from tests.training import toy


def epoch_batches(epoch):
    steps = toy.TRAIN.steps_per_epoch
    return (toy.TRAIN.gather(toy.TRAIN.arrays, epoch * steps + i) for i in range(steps))


def test_a_run_of_a_functions_batches_is_the_resident_run(tmp_path):
    settings = {"key": jax.random.key(0), "progress": False}
    whole = toy.fit(toy.KD, toy.TRAIN, steps=12, **settings)
    train = data.from_batches(epoch_batches, toy.TRAIN.steps_per_epoch)
    toy.fit(toy.KD, train, steps=7, directory=tmp_path, **settings)  # ends within the second epoch
    resumed = toy.fit(toy.KD, train, steps=12, directory=tmp_path, **settings)
    other = data.from_batches(lambda epoch: epoch_batches(epoch + 1), toy.TRAIN.steps_per_epoch)
    with pytest.raises(ValueError, match="first_batch"):
        toy.fit(toy.KD, other, steps=12, directory=tmp_path, **settings)
    for name in ("w", "b"):
        np.testing.assert_allclose(resumed.state.student.params[name], whole.state.student.params[name], rtol=1e-5)
