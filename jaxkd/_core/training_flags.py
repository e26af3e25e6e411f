"""Training flags of modules, and the layers that no flag reaches."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from jaxkd._core import checks

Flag = str | Callable[[bool], Mapping[str, Any]] | None
"""A module's training flag: the argument that is True in training, or a function from ``train`` to the arguments."""

held_in_inference: contextvars.ContextVar[Callable[[str], bool] | None] = contextvars.ContextVar(
    "jaxkd_held_in_inference", default=None
)
"""Set by `jaxkd.wrappers.freeze`: whether a module of a path is in inference mode, whatever the mode of the pass."""

_TRAIN = ("train", "training", "is_training")
_INFER = ("deterministic", "use_running_average")


def mode_flags(function: Callable[..., Any], train: bool, flag: Flag = None) -> dict[str, Any]:
    """Returns the arguments that put a call into training or inference mode.

    They are those of ``flag``, or else the usual names that the signature has.

    Raises:
      ValueError: the signature has no such argument.

    >>> mode_flags(lambda x, *, deterministic: x, train=True)
    {'deterministic': False}
    >>> mode_flags(lambda x, mode: x, train=True, flag=lambda train: {"mode": "train" if train else "eval"})
    {'mode': 'train'}
    """
    accepted = inspect.signature(function).parameters
    if flag is None:
        return {k: train for k in _TRAIN if k in accepted} | {k: not train for k in _INFER if k in accepted}
    given = {flag: train} if isinstance(flag, str) else dict(flag(train))
    if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in accepted.values()):
        for name in given:
            checks.known(name, [n for n in accepted if n != "self"], "flag, argument of the model's call")
    return given


def is_held(path: Iterable[Any]) -> bool:
    """Returns whether `held_in_inference` holds a module, by the parts of its path.

    >>> is_held(("encoder", "norm"))
    False
    """
    held = held_in_inference.get()
    return held is not None and held("".join(f"{part}/" for part in path))


def check_modes(
    layers: Mapping[str, bool], function: Callable[..., Any], train: bool, flag: Flag, *, fields: Sequence[str] = ()
) -> None:
    """Raises if no flag reaches Dropouts or BatchNorms, so their mode is wrong.

    A module whose usual flag is known decides by itself, and so does a ``flag`` that is a function.

    Args:
      layers: whether each Dropout and BatchNorm of the pass is in training mode.
      function: the module's call.
      train: whether the pass is one in training mode.
      flag: the user's flag.
      fields: names of the module's own fields, which may hold a flag.

    Raises:
      ValueError: in a pass in training mode, no layer trains although an argument or a field may be the flag; or in
        inference mode, one does.
    """
    if callable(flag) or (flag is None and mode_flags(function, train)):
        return
    trained = [name for name, trains in layers.items() if trains]
    signature = inspect.signature(function)
    unused = [name for name, parameter in signature.parameters.items() if name != flag and _like_a_flag(parameter)]
    unused += [name for name in fields if name in (*_TRAIN, *_INFER)]
    always_infers = train and layers and not trained and (flag is not None or unused)
    if not always_infers and (train or not trained):
        return
    named = ", ".join(map(repr, trained or layers))
    cause = (
        f"none of its usual names ({', '.join((*_TRAIN, *_INFER))}) is an argument"
        if flag is None
        else (f"flag={flag!r} does not change them")
    )
    raise ValueError(
        f"training flag: {named} {'always trains' if trained else 'never trains'}: {cause} of the module's call"
        f"{signature}{f', whose {unused} may be the flag' if unused else ''}. Name the argument that is True in "
        "training: adapters.…(flag='is_train'); or give a function: flag=lambda train: {'mode': 'train' if train else "
        "'eval'}. If a constant mode is intended: flag=lambda train: {}."
    )


def _like_a_flag(parameter: inspect.Parameter) -> bool:
    """Returns whether an argument may be a flag: a bool or a string."""
    if isinstance(parameter.default, bool | str):
        return True
    annotation = str(parameter.annotation)
    return any(kind in annotation for kind in ("bool", "'str'", "Literal")) or annotation == "str"
