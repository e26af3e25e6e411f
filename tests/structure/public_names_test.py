"""Rules 3 and 4 of the design: what is public, who may use what, and one name for one thing."""

import ast
import collections
import importlib
import inspect

import pytest

from tests.structure import source

USERS = [path for folder in source.OUTSIDE for path in source.files(folder)]
FILES = source.files("jaxkd")


def is_public_module(module: str) -> bool:
    """Returns whether a module is public: a folder or file of losses without an underscore, or a listed module."""
    parts = module.split(".")
    for end in range(2, len(parts) + 1):
        parent, name = ".".join(parts[: end - 1]), parts[end - 1]
        if parent == "jaxkd":
            if f"jaxkd.{name}" not in [*source.packages(), "jaxkd.types"]:
                return False
        elif parts[1] == "losses" or (source.ROOT / "/".join([*parent.split("."), name])).is_dir():
            if name.startswith("_"):  # subpackages, such as the families of schemes, and the files of losses
                return False
        elif name not in source.public_names(parent):
            return False
    return True


def check(path, found) -> str | None:
    """Returns what is wrong with an import of jaxkd from outside of the package that is imported, or None."""
    if found.name is None:
        return None if is_public_module(found.module) else f"{found.module} is private"
    if source.is_module(found.dotted) and is_public_module(found.dotted):
        return None
    if not is_public_module(found.module):
        return f"{found.module} is private"
    if found.module == "jaxkd.types":
        return None if not found.name.startswith("_") else f"{found.dotted} is private"
    return None if found.name in source.public_names(found.module) else f"{found.dotted} is not in __all__"


@pytest.mark.parametrize("path", USERS, ids=source.name_of)
def test_experiments_benchmarks_and_examples_use_public_names_only(path):
    for found in source.imports_of(path):
        if found.module.split(".")[0] == "jaxkd":
            assert (wrong := check(path, found)) is None, f"{source.name_of(path)}: {wrong}"


@pytest.mark.parametrize("path", FILES, ids=source.name_of)
def test_a_package_uses_only_public_names_of_another(path):
    package = ".".join(source.module_of(path).split(".")[:2])
    for found in source.imports_of(path):
        target = ".".join(found.dotted.split(".")[:2])
        if target in ("jaxkd", "jaxkd._core", package) or not target.startswith("jaxkd."):
            continue
        assert (wrong := check(path, found)) is None, f"{source.name_of(path)}: {wrong}"


@pytest.mark.parametrize("path", FILES, ids=source.name_of)
def test_no_name_that_starts_with_an_underscore_is_imported(path):
    for found in source.imports_of(path):
        if found.module.split(".")[0] == "jaxkd" and found.name and not source.is_module(found.dotted):
            assert not found.name.startswith("_"), f"{source.name_of(path)} imports {found.dotted}"


def test_a_file_that_is_not_public_starts_with_an_underscore():
    for path in FILES:
        module = source.module_of(path)
        parent, _, name = module.rpartition(".")
        if path.name == "__init__.py" or parent == "jaxkd" or parent.split(".")[1] in ("_core", "losses"):
            continue
        assert name.startswith("_") != (name in source.public_names(parent)), (
            f"{source.name_of(path)}: list it in the package's __all__, or begin its name with an underscore"
        )


def test_no_public_name_hides_a_file_of_its_package():
    for package in [*source.packages()]:
        module = importlib.import_module(package)
        for name in source.public_names(package):
            if source.is_module(f"{package}.{name}"):
                assert inspect.ismodule(getattr(module, name)), f"{package}.{name} hides the file of that name"


def subpackages(package):
    """Returns the folders of a package whose names have no underscore: their names are public."""
    folder = source.ROOT / package.replace(".", "/")
    return sorted(path for path in folder.glob("*/__init__.py") if not path.parent.name.startswith("_"))


def public_objects():
    """Yields (package, name, object) for every public function and class, modules in ``__all__`` included."""
    queue = source.packages()
    while queue:
        package = queue.pop(0)
        module = importlib.import_module(package)
        queue += [f"{package}.{path.parent.name}" for path in subpackages(package)]
        for name in source.public_names(package):
            found = getattr(module, name)
            if inspect.ismodule(found):
                if f"{package}.{name}" not in queue:
                    queue.append(f"{package}.{name}")
            else:
                yield package, name, found


def test_everything_that_is_listed_exists_and_is_documented():
    for package, name, found in public_objects():
        if inspect.isfunction(found) or inspect.isclass(found):
            assert inspect.getdoc(found), f"{package}.{name} has no docstring"


def test_a_public_name_means_one_thing():
    """A package may repeat names of its own subpackages, which are then the same objects."""
    places, objects = collections.defaultdict(set), collections.defaultdict(dict)
    for package, name, found in public_objects():
        places[name].add(".".join(package.split(".")[:2]))
        objects[name][id(found)] = package
    # What `jaxkd._core` defines for several packages has one public home too.
    twice = {name: sorted(found) for name, found in places.items() if len(found) > 1}
    twice |= {name: sorted(found.values()) for name, found in objects.items() if len(found) > 1}
    assert not twice, twice


def test_the_front_repeats_names_and_adds_none():
    module = importlib.import_module("jaxkd")
    homes = {id(found): name for _, name, found in public_objects()}
    types = importlib.import_module("jaxkd.types")
    for name in source.public_names("jaxkd"):
        found = getattr(module, name)
        if not inspect.ismodule(found):
            assert homes.get(id(found)) == name or getattr(types, name, None) is found, name


def test_schemes_have_one_front_of_at_most_twenty_names():
    assert len(source.public_names("jaxkd.schemes")) <= 20


def test_at_most_six_positional_parameters():
    for path in FILES:
        for node in ast.walk(source.tree_of(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = len(node.args.posonlyargs) + len(node.args.args)
                count -= bool(node.args.args) and node.args.args[0].arg in ("self", "cls")
                assert count <= 6, f"{source.name_of(path)}: {node.name} has {count} positional parameters"
