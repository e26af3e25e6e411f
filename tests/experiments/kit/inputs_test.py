"""Batches of a few labeled examples, and of all examples without their labels."""

import numpy as np

from experiments.kit import inputs


def test_few_labels():
    label = np.arange(20, dtype=np.int32)
    chosen = np.array([17, 3, 8, 11])
    loader = inputs.few_labels({"label": label, "x": 2 * label}, chosen, (2, 5), 0, {"label": np.full_like(label, -1)})
    assert loader.batch_size == 7 and loader.steps_per_epoch == 4, "all examples decide the epoch"
    batches = loader.batches()
    seen: list[set[int]] = [set(), set()]
    for _ in range(4):
        batch = {name: np.asarray(value) for name, value in next(batches).items()}
        assert batch["labeled"].tolist() == [True] * 2 + [False] * 5
        np.testing.assert_array_equal(batch["label"][:2], batch["index"][:2])
        np.testing.assert_array_equal(batch["label"][2:], -1)
        np.testing.assert_array_equal(batch["x"], 2 * batch["index"])
        for part, own in zip(seen, (batch["index"][:2], batch["index"][2:]), strict=True):
            part |= set(own.tolist())
    assert seen[0] == set(chosen.tolist()) and len(seen[1]) == 20


def test_labels_of_the_others_stay_unless_they_are_replaced():
    label = np.arange(6, dtype=np.int32)
    batch = next(inputs.few_labels({"label": label}, label[:2], (1, 3), 0).batches())
    np.testing.assert_array_equal(batch["label"], batch["index"])
