"""Rule 4 of the design: a parameter name has one meaning over the whole package, given in `parameters.toml`."""

import collections
import inspect
import re
import tomllib

from tests.structure import source
from tests.structure.public_names_test import public_objects

MEANINGS = tomllib.loads((source.ROOT / "tests/structure/parameters.toml").read_text(encoding="utf-8"))


def parameters():
    """Returns the public functions that have a parameter, by its name, with the kind of its annotation."""
    found = collections.defaultdict(lambda: collections.defaultdict(list))
    for package, name, function in public_objects():
        if inspect.isfunction(function):
            for parameter in inspect.signature(function).parameters.values():
                found[parameter.name][kind(str(parameter.annotation))].append(f"{package}.{name}")
    return found


def kind(annotation: str) -> str:
    """Returns what an annotation describes: an array, a number, text, a function or another object.

    The forms that a hyperparameter may take (a number, a traced scalar, a schedule) are one kind.
    """
    annotation = re.sub(r"'[^']*'|\"[^\"]*\"", "", annotation)  # dimensions
    for word, result in (
        ("Schedule", "number"),
        ("Callable", "function"),
        ("Transform", "function"),
        ("Mapping[str", "mapping"),
        ("float", "number"),
        ("int", "number"),
        ("Decay", "number"),
        ("[Array", "array"),
        ("Array", "array"),
        ("Path", "text"),
        ("str", "text"),
        ("bool", "flag"),
    ):
        if word in annotation:
            return result
    return "object"


def test_every_parameter_of_a_public_function_has_a_meaning():
    found = parameters()
    assert sorted(found.keys() - MEANINGS.keys()) == [], "add the meaning, or use a name that is in the table"
    assert sorted(MEANINGS.keys() - found.keys()) == [], "no public function has these parameters"


def test_a_parameter_is_of_the_kinds_that_its_meaning_allows():
    """`labels`, say, is an array everywhere; the path of an array of labels is `label_path`."""
    for name, kinds in parameters().items():
        allowed = set(MEANINGS[name]["kinds"])
        wrong = {kind: places for kind, places in kinds.items() if kind not in allowed}
        assert not wrong, f"{name}: {MEANINGS[name]['means']}; {wrong}"


def test_roles_are_in_the_order_student_teacher_objective():
    """A wrapper takes what it wraps first, as `objectives.select` does with an objective."""
    roles = ("student", "teacher", "objective")
    for package, name, function in public_objects():
        if inspect.isfunction(function):
            found = [
                p.name for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD
            ]
            order = [role for role in found[found[:1] == ["objective"] :] if role in roles]
            assert order == sorted(order, key=roles.index), f"{package}.{name}: {order}"
