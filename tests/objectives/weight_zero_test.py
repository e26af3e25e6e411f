"""Objectives of detectors with weight 0: the student alone, bit for bit."""

import functools
from typing import Any

import jax
import optax
import pytest

import jaxkd
from jaxkd import combine, losses, objectives, term
from tests import tiny
from tests.detection_rows import ANCHORS, of_detectors

CE = term(losses.cross_entropy, "student/logits", "batch/label")
NONE: dict[str, Any] = {"soft_weight": 0.0, "box_weight": 0.0}
ON_LEVELS: dict[str, Any] = {
    "mgd": objectives.masked_generation,
    "dmkd": objectives.dual_masked_generation,
    "pkd": functools.partial(objectives.aligned, losses.pearson_features),
    "cwd": functools.partial(objectives.aligned, losses.channel_kl),
    "fgfi": objectives.fine_grained_imitation,
    "fgd": objectives.focal_and_global,
}
ZERO = {
    "chen": objectives.detector_kd(ANCHORS, level_map={0: 0}, feature_weight=0.0, **NONE),
    "soft": objectives.soft_detections(ANCHORS, **NONE),
    **{name: objectives.pyramid(functools.partial(make, weight=0.0), {0: 0}) for name, make in ON_LEVELS.items()},
}


def trained(objective):
    kd = jaxkd.distill(tiny.student, tiny.teacher(), objective, optimizer=optax.adam(0.05))
    state, step = kd.init(jax.random.key(1), tiny.batch(8)), jax.jit(kd.step)
    for seed in range(2):
        state, metrics = step(state, tiny.batch(8, seed))
    return state.student, metrics["ce"]


@pytest.fixture(scope="module")
def alone():
    return trained(combine(ce=CE))


@pytest.mark.slow
@pytest.mark.parametrize("name", ZERO)
def test_weight_0_is_the_student_alone(name, alone):
    tiny.assert_equal(trained(combine(ce=CE, kd=of_detectors(ZERO[name]))), alone)
