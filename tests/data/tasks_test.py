"""Tasks: disjoint classes, each in its own range of steps, with retained rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.data import Resident, from_arrays
from jaxkd.data import _tasks as lib
from jaxkd.training import fit

GROUPS = ((4, 1), (0, 5), (2, 3))


def whole(size=30):
    label = np.arange(size) % 6
    return from_arrays(np.arange(size, dtype=np.uint8).reshape(size, 1, 1, 1), label, num_classes=6, name="six")


def sequence(steps=(3, 4, 5), *, batch=5, kept=2, more=3, **options):
    parts = lib.class_incremental(whole(), GROUPS)
    loaders = [Resident(part, batch, seed=1, **options) for part in parts]
    retained = [lib.exemplars(part, per_class=kept) for part in parts] if more else None
    return lib.Tasks(loaders, steps, retained=retained, retained_size=more), loaders


@pytest.mark.parametrize("seed", [None, 0, 7])
def test_groups_have_every_class_once(seed):
    groups = lib.class_groups(11, 4, seed=seed)
    assert [len(group) for group in groups] == [3, 3, 3, 2]
    assert sorted(number for group in groups for number in group) == list(range(11))
    assert groups == lib.class_groups(11, 4, seed=seed)
    assert (groups == ((0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10))) == (seed is None)


def test_set_is_divided_by_its_classes():
    parts = lib.class_incremental(whole(), GROUPS)
    assert [part.name for part in parts] == ["six/0", "six/1", "six/2"]
    for part, group in zip(parts, GROUPS, strict=True):
        assert set(part.arrays["label"].tolist()) == set(group)
        assert part.num_classes == 6
        np.testing.assert_array_equal(part.arrays["image"].ravel(), part.arrays["index"])
    together = np.concatenate([part.arrays["index"] for part in parts])
    np.testing.assert_array_equal(np.sort(together), np.arange(30))
    by_number = lib.class_incremental(whole(), 3, seed=2)
    assert [tuple(np.unique(part.arrays["label"])) for part in by_number] == list(lib.class_groups(6, 3, seed=2))


def test_exemplars_are_of_each_class():
    kept = lib.exemplars(whole(), per_class=3, seed=4)
    assert np.bincount(kept.arrays["label"]).tolist() == [3] * 6
    assert len(set(kept.arrays["index"].tolist())) == 18
    np.testing.assert_array_equal(kept.arrays["index"] % 6, kept.arrays["label"])
    other = lib.exemplars(whole(), per_class=3, seed=5)
    assert set(kept.arrays["index"].tolist()) != set(other.arrays["index"].tolist())
    assert np.bincount(lib.exemplars(whole(), per_class=99).arrays["label"]).tolist() == [5] * 6


def test_each_task_has_its_range_of_steps():
    train, loaders = sequence(more=0)
    gather = jax.jit(train.gather)
    assert (train.batch_size, train.steps_per_epoch, train.padded) == (5, 12, False)
    for step in range(14):  # after the end, the last task continues
        task = 0 if step < 3 else 1 if step < 7 else 2
        assert int(train.task(step)) == task
        found = gather(train.arrays, step)
        expected = loaders[task].gather(loaders[task].arrays, step - (0, 3, 7)[task])
        assert found.keys() == expected.keys()
        for name in found:
            np.testing.assert_array_equal(found[name], expected[name])


def test_first_task_without_steps_is_skipped():
    train, _ = sequence((0, 4, 5), more=0)
    assert set(train.gather(train.arrays, 0)["label"].tolist()) <= set(GROUPS[1])


@pytest.mark.slow
def test_retained_rows_are_of_the_tasks_before():
    train, _ = sequence(kept=2, more=3)
    assert (train.batch_size, train.padded) == (8, True)
    gather, seen = jax.jit(train.gather), {}
    for step in range(12):
        batch = jax.device_get(gather(train.arrays, step))
        task = int(train.task(step))
        assert batch["mask"].tolist() == [True] * 5 + [task > 0] * 3
        assert set(batch["label"][:5].tolist()) <= set(GROUPS[task])
        old = {number for group in GROUPS[:task] for number in group}
        assert task == 0 or set(batch["label"][5:].tolist()) <= old
        np.testing.assert_array_equal(batch["index"] % 6, batch["label"])
        seen.setdefault(task, []).extend(batch["index"][5:].tolist())
    # Two of each of two classes, three rows per step: four steps contain each of the four rows three times.
    kept = [lib.exemplars(part, per_class=2).arrays["index"].tolist() for part in lib.class_incremental(whole(), 3)]
    assert len(kept[0]) == 4
    assert sorted(np.unique(seen[1], return_counts=True)[1].tolist()) == [3, 3, 3, 3]
    assert len(set(seen[2])) == 8


def test_all_tasks_have_a_mask_or_none():
    label = np.array([0] * 6 + [1] * 5)
    parts = lib.class_incremental(from_arrays(np.zeros((11, 1, 1, 1), np.uint8), label), [[0], [1]])
    train = lib.Tasks([Resident(part, 3) for part in parts], 4)
    assert train.padded
    assert train.gather(train.arrays, 0)["mask"].tolist() == [True] * 3
    assert train.gather(train.arrays, 5)["mask"].tolist() == [True, True, False]


@pytest.mark.slow
def test_gather_traces_once_and_equals_a_scan():
    train, _ = sequence()
    traces = []

    @jax.jit
    def gather(arrays, step):
        traces.append(None)
        return train.gather(arrays, step)

    alone = [gather(train.arrays, jnp.int32(step)) for step in range(12)]
    assert len(traces) == 1
    scanned = jax.jit(lambda a: jax.lax.scan(lambda _, s: (None, train.gather(a, s)), None, jnp.arange(12))[1])
    for name, values in scanned(train.arrays).items():
        np.testing.assert_array_equal(values, np.stack([batch[name] for batch in alone]))


def test_iterator_resumes_from_a_state():
    train, _ = sequence()
    batches = iter(train)
    first = [next(batches) for _ in range(9)]
    assert batches.get_state() == {"step": 9}
    again = train.batches({"step": 6})
    for expected in first[6:]:
        for name, values in next(again).items():
            np.testing.assert_array_equal(values, expected[name])


def test_fingerprint_differs_between_sequences():
    prints = [
        sequence()[0].fingerprint(),
        sequence((4, 4, 4))[0].fingerprint(),
        sequence(kept=1)[0].fingerprint(),
        sequence(more=2)[0].fingerprint(),
    ]
    assert prints[0] == sequence()[0].fingerprint()
    assert all(prints[i] != prints[j] for i in range(4) for j in range(i))


@pytest.mark.slow
def test_fit_refuses_another_sequence(tmp_path):
    import optax

    import jaxkd

    linear = jaxkd.adapters.plain(
        lambda key, x: jnp.zeros((1, 6)), lambda w, x: x.reshape(-1, 1).astype(jnp.float32) @ w
    )
    ce = jaxkd.term(jaxkd.losses.cross_entropy, "student/logits", "batch/label")
    kd = jaxkd.distill(linear, jaxkd.teachers.none(), ce, optimizer=optax.sgd(1e-3))
    options = {"steps": 3, "key": jax.random.key(0), "directory": tmp_path, "progress": False}
    fit(kd, sequence()[0], **options)
    with pytest.raises(ValueError, match=r"data\.train\.steps"):
        fit(kd, sequence((4, 3, 5))[0], **options)


def test_invalid_arguments_raise():
    parts = lib.class_incremental(whole(), GROUPS)
    loaders = [Resident(part, 5) for part in parts]
    kept = [lib.exemplars(part, per_class=1) for part in parts]
    with pytest.raises(ValueError, match="expected 1 to 6"):
        lib.class_groups(6, 7)
    with pytest.raises(ValueError, match="none of them twice"):
        lib.class_incremental(whole(), [[0, 1], [1]])
    with pytest.raises(ValueError, match="6 classes of 'six'"):
        lib.class_incremental(whole(), [[0, 6]])
    with pytest.raises(ValueError, match=r"task 1, classes \[4\], has no examples"):
        lib.class_incremental(whole(4), [[0], [4]])
    with pytest.raises(ValueError, match="per_class"):
        lib.exemplars(whole(), per_class=0)
    for steps in (0, [3, 4], [3, 0, 4], []):
        with pytest.raises(ValueError, match="steps: expected"):
            lib.Tasks(loaders, steps)
    with pytest.raises(ValueError, match="batches of one form"):
        lib.Tasks([loaders[0], Resident(parts[1], 4), loaders[2]], 3)
    with pytest.raises(ValueError, match="got list"):
        lib.Tasks([[], []], 3)
    with pytest.raises(ValueError, match="expected both"):
        lib.Tasks(loaders, 3, retained=kept)
    with pytest.raises(ValueError, match="expected both"):
        lib.Tasks(loaders, 3, retained_size=2)
    with pytest.raises(ValueError, match="got 1 sets"):
        lib.Tasks(loaders, 3, retained=kept[:1], retained_size=2)
    other = from_arrays(np.zeros((2, 2, 1, 1), np.uint8), [0, 1])
    with pytest.raises(ValueError, match="rows as those of the tasks"):
        lib.Tasks(loaders, 3, retained=[other, kept[1]], retained_size=2)
