"""Name maps: from the name of an array in a file to its name in the model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

Renamed = str | Sequence[str]

Names = Mapping[str, Renamed] | Sequence[tuple[str, str]] | Callable[[str], Renamed | None] | None
"""A name map in one of three forms:

- a mapping of names or of module prefixes: ``{"fc": "Dense_0"}`` renames ``fc.weight`` and ``fc.bias``. The longest
  match wins. A sequence of names fills several arrays of the model from one, as for tied weights;
- rules ``[(regular expression, replacement), ...]``, applied by `re.sub` in this order;
- a function of the name that returns the new name, several names, or None for an array that the model lacks.

Names that no entry and no rule matches are unchanged.
"""


def renamer(names: Names) -> Callable[[str], tuple[str, ...]]:
    r"""Returns a name map as a function from a name to the names in the model.

    Raises:
      TypeError: the map has none of the three forms.
      ValueError: a rule is not a pair of a regular expression and its replacement.

    >>> renamer({"fc": "Dense_0"})("fc.weight"), renamer([(r"^layer(\d)", r"stage\1")])("layer2/kernel")
    (('Dense_0.weight',), ('stage2/kernel',))
    """
    if names is None:
        return lambda name: (name,)
    if callable(names):
        return lambda name: _several(names(name))
    if isinstance(names, Mapping):
        return lambda name: _by_prefix(names, name)
    if isinstance(names, list | tuple):
        rules = [_rule(rule) for rule in names]

        def renamed(name: str) -> tuple[str, ...]:
            for pattern, replacement in rules:
                name = pattern.sub(replacement, name)
            return (name,)

        return renamed
    raise TypeError(
        f"names: expected a mapping, a list of (regular expression, replacement) or a function, got "
        f"{type(names).__name__}."
    )


def matcher(patterns: str | Sequence[str], argument: str) -> Callable[[str], bool]:
    """Returns a function that tells whether a whole name matches a regular expression.

    Args:
      patterns: one or several regular expressions, of which one has to match.
      argument: name of the argument that they came from, for messages.

    Raises:
      ValueError: a pattern is not a regular expression.

    >>> matcher(r".*bias", "ignore")("fc.bias"), matcher((), "ignore")("fc.bias")
    (True, False)
    """
    patterns = (patterns,) if isinstance(patterns, str) else patterns
    compiled = [_compiled(pattern, argument) for pattern in patterns]
    return lambda name: any(pattern.fullmatch(name) for pattern in compiled)


def _by_prefix(names: Mapping[str, Renamed], name: str) -> tuple[str, ...]:
    ends = [len(name), *(at for at in range(len(name) - 1, 0, -1) if name[at] in "./")]
    for end in ends:
        if name[:end] in names:
            return tuple(new + name[end:] for new in _several(names[name[:end]]))
    return (name,)


def _several(renamed: Renamed | None) -> tuple[str, ...]:
    if renamed is None:
        return ()
    return (renamed,) if isinstance(renamed, str) else tuple(renamed)


def _rule(rule: object) -> tuple[re.Pattern[str], str]:
    if not (isinstance(rule, tuple | list) and len(rule) == 2 and all(isinstance(part, str) for part in rule)):
        raise ValueError(f"names: expected rules (regular expression, replacement), got {rule!r}.")
    return _compiled(rule[0], "names"), rule[1]


def _compiled(pattern: str, argument: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{argument}: expected a regular expression, got {pattern!r}: {error}.") from error
