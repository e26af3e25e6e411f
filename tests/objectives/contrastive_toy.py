"""Toy data of several classes, and the three contrastive objectives on it."""

import numpy as np

from jaxkd.objectives import crd, crd_in_batch, crd_queue
from tests import objective_runs
from tests.objective_runs import run

DATA, BATCH, NEGATIVES, FEATURES = 24, 16, 7, 5
CLASSES = np.array([2, 0, 1, 0, 3, 1, 1, 0, 2, 3, 0, 1, 2, 0, 1, 0, 3, 1, 0, 2, 0, 0, 1, 0])
PATHS = ("student/f", "teacher/f")
CRD = crd(*PATHS, CLASSES, negatives=NEGATIVES, embedding_size=FEATURES, weight=0.8)
QUEUE = crd_queue(*PATHS, queue_size=20, embedding_size=FEATURES, weight=0.8)
IN_BATCH = crd_in_batch(*PATHS, embedding_size=FEATURES, weight=0.8)
KEEP = np.arange(BATCH) % 5 > 1
MASKS = {"all": np.ones(BATCH, bool), "uneven": KEEP, "half": np.arange(BATCH) >= BATCH // 2}


def arrays(size=BATCH, seed=0, *, mask=None, index=None):
    rng = np.random.default_rng(seed)
    index = rng.permutation(DATA)[:size] if index is None else np.asarray(index)
    size = len(index)
    batch = {"index": index.astype(np.int32), "label": CLASSES[index % DATA].astype(np.int32)}
    return {
        "student": {"f": rng.normal(size=(size, 2, 3)).astype(np.float32)},
        "teacher": {"f": rng.normal(size=(size, 4)).astype(np.float32)},
        "batch": batch if mask is None else {**batch, "mask": mask},
    }


def kept(given, keep):
    found = {root: objective_runs.rows(tree, keep) for root, tree in given.items()}
    found["batch"].pop("mask", None)
    return found


def after(objective, variables, *batches):
    """Returns the variables after a step on each batch."""
    for given in batches:
        variables = variables._replace(state=run(objective, variables, given).state)
    return variables


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings(params, given):
    found = {}
    for side in ("student", "teacher"):
        x = np.asarray(given[side]["f"], np.float64).reshape(len(given[side]["f"]), -1)
        found[side] = unit(x @ np.float64(params[side]["kernel"]) + np.float64(params[side]["bias"]))
    return found
