"""Rule 1 of the design: a layer imports only layers below it, and no files import each other in a circle."""

import sys

import pytest

from tests.structure import source

# The floors of the house, from the ground up. A file may import its own layer and every layer of a lower floor.
FLOORS = (
    {"types"},
    {"_core", "losses", "dense"},
    {"metrics", "adapters", "data", "models"},
    {"wrappers", "objectives", "teachers"},
    {"distillers"},
    {"parallel"},
    {"schemes", "cache"},
    {"training"},
    {"weights"},
    {"__init__"},
)
FLOOR = {layer: number for number, layers in enumerate(FLOORS) for layer in layers}
# What a layer may import where that is less than every lower floor.
ONLY = {
    "_core": {"types"},
    "losses": set(),
    "dense": {"types", "_core"},
    "data": {"types", "_core"},
    "models": {"types", "_core"},
}
THIRD_PARTY = {"jax", "flax", "optax", "orbax", "numpy", "jaxtyping", "rich", "safetensors", "flatbuffers"}
FILES = source.files("jaxkd")


def layer_of(module: str) -> str:
    """Returns the layer of a module of jaxkd; the front ``jaxkd`` itself is the top one."""
    return module.split(".")[1] if "." in module else "__init__"


def allowed(layer: str) -> set[str]:
    below = {name for name, floor in FLOOR.items() if floor < FLOOR[layer]}
    # Users choose data and models; nothing else of the toolkit knows them.
    below -= {"data", "models"}
    return ONLY.get(layer, below) | {layer}


@pytest.mark.parametrize("path", FILES, ids=source.name_of)
def test_a_layer_imports_only_layers_below(path):
    layer = layer_of(source.module_of(path))
    assert layer in FLOOR, f"{layer} has no floor: give it one here and in docs/architecture.md"
    for found in source.imports_of(path):
        if found.module.split(".")[0] != "jaxkd":
            continue
        if found.module == "jaxkd":
            assert found.name is not None and source.is_module(found.dotted), (
                f"{source.name_of(path)} imports {found.dotted} through the front: import it from its package"
            )
        imported = layer_of(found.dotted if found.module == "jaxkd" else found.module)
        assert imported in allowed(layer), f"{source.name_of(path)}: {layer} may not import {found.dotted}"


def test_no_two_layers_permit_each_other():
    for first in FLOOR:
        for second in FLOOR:
            assert first == second or not (first in allowed(second) and second in allowed(first)), (first, second)


def test_no_files_import_each_other_in_a_circle():
    by_module = {source.module_of(path): path for path in FILES}
    graph = {}
    for module, path in by_module.items():
        reached = set()
        for found in source.imports_of(path):
            if found.where != "typing":
                # `from package import name` runs package/__init__ unless the name is a file of its own.
                reached |= {found.dotted} & by_module.keys() or {found.module} & by_module.keys()
        graph[module] = reached - {module}

    state: dict[str, int] = {}

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert state.get(module) != 1, f"a circle of files: {' -> '.join([*trail[trail.index(module) :], module])}"
        if state.get(module) == 2:
            return
        state[module] = 1
        for next_ in sorted(graph[module]):
            visit(next_, (*trail, module))
        state[module] = 2

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=source.name_of)
def test_only_core_dependencies_are_imported_at_the_top_of_a_file(path):
    for found in source.imports_of(path):
        top = found.module.partition(".")[0]
        assert found.where != "top" or top in THIRD_PARTY | {"jaxkd"} | sys.stdlib_module_names, (
            f"{source.name_of(path)} imports {top} at its top, which only an extra installs: import it in the function"
        )


@pytest.mark.parametrize("path", source.files("experiments"), ids=source.name_of)
def test_an_experiment_imports_the_kit_and_its_own_folder(path):
    """`experiments.cells` runs cells of an experiment, `experiments.tables` reads results of all: no experiment."""
    folder = path.relative_to(source.ROOT / "experiments").parts[0]
    for found in source.imports_of(path):
        if found.module.split(".")[0] == "experiments" and folder not in ("cells.py", "tables", "__init__.py"):
            own = [*found.dotted.split("."), ""][1]
            assert own in ({"kit"} if folder == "kit" else {"kit", folder}), f"{source.name_of(path)}: {found.dotted}"
