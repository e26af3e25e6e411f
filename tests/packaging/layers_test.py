"""The layers: modules import lower layers only, and at their top only core dependencies."""

import ast
import importlib.util
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
CORE = {"jax", "flax", "optax", "orbax", "numpy", "jaxtyping", "rich", "safetensors", "flatbuffers"}

BASE = {"types", "checks", "normalization", "averaging", "progress"}
ALLOWED_IMPORTS = {
    "types": set(),
    "checks": {"types"},
    "normalization": {"types"},
    "averaging": {"types"},
    "progress": set(),
    "losses": set(),
    "adapters": BASE,
    "objectives": BASE | {"losses"},
    "teachers": BASE | {"losses", "adapters"},
    "training": BASE | {"losses", "adapters", "objectives", "teachers", "parallel"},
    "parallel": BASE | {"losses", "adapters", "objectives", "teachers", "training"},
    "schemes": BASE | {"losses", "adapters", "objectives", "teachers", "training", "parallel"},
    "weights": BASE | {"adapters", "training"},
    "models": {"types"},
    "data": {"types"},
    "__init__": BASE | {"losses", "adapters", "objectives", "teachers", "training", "parallel", "schemes", "weights"},
}
MODULES = sorted((ROOT / "jaxkd").rglob("*.py"))
LOSSES = [path for path in MODULES if "losses" in path.parts and path.name != "__init__.py"]


def _name(path):
    return str(path.relative_to(ROOT))


def _layer(path):
    parts = path.relative_to(ROOT / "jaxkd").with_suffix("").parts
    return parts[0]


def _imports(path):
    """Returns pairs (dotted module, where): at the file's "top", "inner" to a function, or "typing" only."""

    def visit(node, where):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, where) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    package = path.relative_to(ROOT).with_suffix("").parts[: -child.level]
                    base = ".".join([*package, *([base] if base else [])])
                # `from jaxkd import losses` imports a layer, `from jaxkd.losses import hint_mse` a name of one.
                yield from ((f"{base}.{alias.name}", where) for alias in child.names)
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from visit(child, "inner")
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                yield from visit(child, "typing")
            else:
                yield from visit(child, where)

    return list(visit(ast.parse(path.read_text(encoding="utf-8")), "top"))


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_modules_import_lower_layers_only(path):
    layer = _layer(path)
    assert layer in ALLOWED_IMPORTS, f"{_name(path)} is in no layer: add {layer!r} to ALLOWED_IMPORTS and to the design"
    for module, _ in _imports(path):
        top, _, rest = module.partition(".")
        imported = rest.partition(".")[0]
        if top != "jaxkd" or imported == layer:
            continue
        if imported in ALLOWED_IMPORTS or (ROOT / "jaxkd" / imported).exists():
            assert imported in ALLOWED_IMPORTS[layer], f"{_name(path)} ({layer}) may not import {module}"
        else:  # jaxkd itself, or a name that jaxkd/__init__.py exports: the top layer
            pytest.fail(f"{_name(path)} imports {module} from the top of the package: import it from its own module")


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_only_core_dependencies_are_imported_at_the_top(path):
    allowed = {"jaxkd"} | CORE | sys.stdlib_module_names
    for module, where in _imports(path):
        top = module.partition(".")[0]
        assert top in allowed or where != "top", (
            f"{_name(path)} imports {top} at its top, which only an extra installs: import it in the function"
        )


@pytest.mark.parametrize("path", LOSSES, ids=_name)
def test_losses_import_jax_and_optax_only(path, monkeypatch):
    for module, where in _imports(path):
        top = module.partition(".")[0]
        allowed = {"jax", "optax"} | sys.stdlib_module_names | ({"jaxtyping"} if where == "typing" else set())
        assert top in allowed, f"{_name(path)} imports {module}, so that it cannot be copied to another project"
    # A copy outside of the package works.
    monkeypatch.setitem(sys.modules, "jaxkd", None)
    monkeypatch.setitem(sys.modules, "jaxtyping", None)
    spec = importlib.util.spec_from_file_location(f"copied_{path.stem}", path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
