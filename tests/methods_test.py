"""docs/methods.md: what it names is there, and what is there is named."""

import functools
import pathlib
import re

import pytest

import jaxkd
from jaxkd import adapters, data, losses, objectives, schemes, training, weights

PAGE = pathlib.Path(__file__).parents[1] / "docs" / "methods.md"
NAMES = sorted(set(re.findall(r"`((?:\w+\.)*\w+)(?:\(\w+=\))?`", PAGE.read_text(encoding="utf-8"))))
LAYERS = {"losses": losses, "objectives": objectives, "schemes": schemes, "training": training, "adapters": adapters}
LAYERS |= {"data": data, "weights": weights}  # which jaxkd does not import by itself

# What objectives are built with rather than a method of its own.
TOOLS = {"combine", "counted", "lookup", "mapped", "mean", "replace", "term", "weighted"}
TOOLS |= {"Discriminator", "convolutional", "mlp"}


@pytest.mark.parametrize("name", [name for name in NAMES if "." in name and not name.startswith("jaxkd.")])
def test_what_the_page_names_is_there(name):
    functools.reduce(getattr, name.split("."), jaxkd)


@pytest.mark.parametrize("layer", ["losses", "objectives"])
def test_what_is_there_is_named(layer):
    named = {name.rpartition(".")[2] for name in NAMES if name.startswith(f"{layer}.")}
    missing = set(LAYERS[layer].__all__) - named - TOOLS - {"reverse_gradient"}
    assert not missing, f"docs/methods.md has no row with {sorted(missing)}"
