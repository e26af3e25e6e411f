"""Cells of the CIFAR-100 benchmark, on a few small random images: what they leave, and that they are made once."""

import contextlib
import fcntl
import json
import math

import jax
import numpy as np
import pytest

from experiments.cifar100 import cells, config, inputs, measures, methods, objectives, recipe, report, teachers, training
from jaxkd import weights
from jaxkd import training as jaxkd_training
from tests.experiments import cifar100_tiny as tiny

PROTOCOL = config.Protocol(epochs=2, teacher_epochs=1, batch_size=8)
STEPS = 4
CACHED = PROTOCOL._replace(cached=True) if hasattr(PROTOCOL, "_replace") else None
KINDS = {"student": 4, "at": 4, "ab": 5, "ft": 5, "crd": 4}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(inputs, "whole", tiny.whole)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """With a teacher that need not be trained."""
    out = tmp_path_factory.mktemp("cifar100")
    return cells.Place(PROTOCOL, None, out, {tiny.TEACHER: tiny.save(out)}, progress=False)


@pytest.mark.parametrize("name", KINDS)
def test_a_cell_of_every_kind(place, monkeypatch, name):
    states, run = [], training.run

    def noted(*arguments, **options):
        result = run(*arguments, **options)
        states.append(result.state)
        return result

    monkeypatch.setattr(training, "run", noted)
    cell = cells.Cell(tiny.TEACHER, tiny.STUDENT, name, 0)
    found = cells.run(cell, place)
    assert found["steps"] == KINDS[name]
