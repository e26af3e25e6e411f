"""Contrastive distillation with a queue and within the batch: state of the queue, and values."""

import numpy as np
import pytest

from jaxkd.objectives import crd_in_batch, crd_queue
from tests import objective_runs, references
from tests.objective_runs import initialize, run
from tests.objectives.contrastive_toy import FEATURES, KEEP, PATHS, after, arrays, embeddings

# --- the queue -------------------------------------------------------------------------------------------------------


def queued(batches, size=6):
    objective = crd_queue(*PATHS, queue_size=size, embedding_size=FEATURES)
    return objective, after(objective, initialize(objective, batches[0]), *batches)


def test_queue_is_first_in_first_out_and_wraps():
    batches = [
        arrays(4, seed, mask=mask) for seed, mask in enumerate((None, np.array([True, False, True, True]), None))
    ]
    _, variables = queued(batches)
    ring, seen = [None] * 6, []
    for given in batches:
        v = embeddings(variables.params, given)
        keep = given["batch"].get("mask", np.ones(4, bool))
        seen += [(v["student"][i], v["teacher"][i], given["batch"]["label"][i]) for i in np.flatnonzero(keep)]
    for i, entry in enumerate(seen):
        ring[i % 6] = entry
    assert len(seen) == 11
    for column, name in enumerate(("student", "teacher")):
        np.testing.assert_allclose(variables.state["queue"][name], [entry[column] for entry in ring], rtol=1e-5)
    np.testing.assert_array_equal(variables.state["label"], [entry[2] for entry in ring])


def test_queue_loss_equals_numpy_reference():
    """While the queue fills and once it is full, with classes and without."""
    batches = [arrays(4, seed) for seed in range(4)]
    for labels in "batch/label", None:
        objective = crd_queue(*PATHS, queue_size=6, embedding_size=FEATURES, label_path=labels)
        variables = initialize(objective, batches[0])
        entries = []
        for given in batches:
            found = run(objective, variables, given)
            v, label = embeddings(variables.params, given), given["batch"]["label"]
            total = 0.0
            for anchor, other in ("student", "teacher"), ("teacher", "student"):
                for i in range(4):
                    own = np.exp(v[anchor][i] @ v[other][i] / 0.07)
                    rest = [e for e in entries[-6:] if labels is None or e["label"] != label[i]]
                    total -= np.log(own / (own + sum(np.exp(v[anchor][i] @ e[other] / 0.07) for e in rest)))
            np.testing.assert_allclose(found.value, total / 4, rtol=1e-4, atol=1e-6)
            entries += [{"student": v["student"][i], "teacher": v["teacher"][i], "label": label[i]} for i in range(4)]
            variables = variables._replace(state=found.state)


def test_queue_count_never_overflows():
    given = arrays(4)
    objective, variables = queued([given])
    places = []
    for _ in range(30):
        variables = variables._replace(state=run(objective, variables, given).state)
        places.append(int(variables.state["written"]))
    assert max(places) < 12
    assert [place % 6 for place in places] == [(4 * (i + 2)) % 6 for i in range(30)]
    assert min(places[1:]) >= 6  # the queue stays full


def test_queue_smaller_than_batch_raises():
    objective, given = crd_queue(*PATHS, queue_size=6, embedding_size=FEATURES), arrays(8)
    with pytest.raises(ValueError, match="crd_queue, queue_size: expected at least the batch of 8, got 6"):
        initialize(objective, given)
    with pytest.raises(ValueError, match="crd_queue, queue_size: expected at least the batch of 8, got 6"):
        objective_runs.on_devices(objective, "pmap", 2)(initialize(objective, arrays(4)), given)


# --- within the batch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["batch/label", None])
def test_in_batch_loss_is_info_nce_of_the_embeddings(labels):
    given = arrays(mask=KEEP)
    objective = crd_in_batch(*PATHS, embedding_size=FEATURES, temperature=0.2, weight=3.0, label_path=labels)
    variables = initialize(objective, given)
    v, tags = embeddings(variables.params, given), None if labels is None else given["batch"]["label"][KEEP]
    s, t = v["student"][KEEP], v["teacher"][KEEP]
    want = references.info_nce(s, t, tags, temperature=0.2) + references.info_nce(t, s, tags, temperature=0.2)
    np.testing.assert_allclose(run(objective, variables, given).value, 3 * want.mean(), rtol=1e-5)
