"""Calls of modules: inputs, training flags, output names and taps.

A tap is a submodule's output, selected by its path from what Flax records of a forward pass. A path names a submodule,
as ``"ResNetStage_1"`` or ``"encoder/blocks/3"`` (dots work as well), or an intermediate that the model sows, as
``"ResNetStage_1/preact"``. For a module with several calls, ``"name#0"`` and ``"name#1"`` select one. The outputs of a
module under `nn.scan` are stacked, and ``"name[2]"`` selects a layer.
"""

from __future__ import annotations

import contextvars
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core import axes, batch_norm, batches, checks
from jaxkd.types import RESERVED, STEP, TAUGHT, Array, Batch, Outputs

Inputs = str | Sequence[str] | Callable[[Batch], Any]
"""Entries of the batch that a model is called with: a name, several names, or a function of the batch."""

computing_in: contextvars.ContextVar[Any] = contextvars.ContextVar("jaxkd_computing_in", default=None)
"""Dtype set by `jaxkd.wrappers.precision`, for layers that would otherwise promote to float32."""


def model_batch(batch: Batch, step: Any, taught: Outputs | None = None) -> Batch:
    """Returns a batch with the step and, for a student, the teacher's outputs.

    Most models read neither of the two. A student whose additional outputs depend on the teacher does, such as an input
    gradient for the teacher's predicted class, or a feature into which the teacher's is mixed.

    Raises:
      ValueError: the batch has a reserved entry already, which would be overwritten.

    >>> model_batch({"image": 1}, 3)
    {'image': 1, 'step': 3}
    """
    refuse_entries("batch", batch, RESERVED)
    return {**batch, STEP: step} if taught is None else {**batch, STEP: step, TAUGHT: taught}


def refuse_entries(what: str, batch: Batch, names: Iterable[str]) -> None:
    """Raises if a batch has one of these entries, which mean something else.

    >>> refuse_entries("batch", {"image": 1}, ["step"])
    """
    if taken := [name for name in names if name in batch]:
        raise ValueError(
            f"{what}: {', '.join(map(repr, taken))} is reserved for an entry that models are given beside the batch "
            f"(jaxkd.types), but the batch has {', '.join(map(repr, batch))}. Rename the user's entry, for instance in "
            "jaxkd.distillers.preprocess(kd, ...), and read the new name: adapters.…(inputs=...)."
        )


def arguments(inputs: Inputs, batch: Batch) -> tuple[Any, ...]:
    """Returns the positional arguments of a model's call.

    Raises:
      ValueError: the batch has no such entry; the message lists its entries.

    >>> arguments("image", {"image": 1, "label": 2})
    (1,)
    """
    if callable(inputs):
        values = inputs(batch)
        return values if isinstance(values, tuple) else (values,)
    names = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    for name in names:
        hint = "Name the model's inputs: adapters.…(inputs=...)."
        checks.known(name, checks.shapes(batch), "model input, batch entry", hint=hint)
    return tuple(batch[name] for name in names)


def name_outputs(result: Any, taps: Mapping[str, Array]) -> Outputs:
    """Names a model's outputs: an array is ``logits``, a mapping has names.

    Raises:
      ValueError: the model returned something else, or a tap has the name of an output.

    >>> name_outputs({"logits": 1}, {"stage2": 2})
    {'logits': 1, 'stage2': 2}
    """
    if isinstance(result, Mapping):
        outputs = dict(result)
    elif hasattr(result, "shape"):
        outputs = {"logits": result}
    else:
        raise ValueError(
            f"model output: expected an array (the logits) or a mapping of names to arrays, got "
            f"{type(result).__name__}. Name the outputs: adapters.…(outputs=lambda out: {{'logits': out[0], ...}})."
        )
    return add_outputs("taps", outputs, taps)


def add_outputs(what: str, outputs: Outputs, new: Mapping[str, Array]) -> Outputs:
    """Returns a model's outputs and new ones; raises where their names collide.

    >>> add_outputs("taps", {"logits": 1}, {"stage2": 2})
    {'logits': 1, 'stage2': 2}
    """
    if twice := sorted(outputs.keys() & new.keys()):
        raise ValueError(
            f"{what}: {', '.join(map(repr, twice))} is an output of the model already; choose another name."
        )
    return {**outputs, **new}


def check_names(what: str, names: Iterable[str], reserved: str = "") -> None:
    """Raises unless there are names, and all can prefix outputs: ``"name/logits"``.

    >>> check_names("views", ["pair"])
    """
    names = list(names)
    if not names:
        raise ValueError(f"{what}: expected at least one, got none.")
    if wrong := [name for name in names if not name or "/" in name or name == reserved]:
        other = f" and are not {reserved!r}" if reserved else ""
        raise ValueError(f"{what}: expected names that are not empty, hold no slash{other}, got {wrong}.")


def share_of(batch: Batch, values: tuple[Any, ...]) -> batch_norm.Share:
    """Returns the BatchNorm `Share` of a batch: its mask, mapped axis and replicas.

    >>> share_of({"image": jax.numpy.ones((4, 2))}, (jax.numpy.ones((4, 2)),)).size
    4
    """
    mask = batches.example_mask(batch)
    sizes = [mask.shape[0]] if mask is not None else [x.shape[0] for x in jax.tree.leaves(values) if jnp.ndim(x)]
    return batch_norm.share_of(mask, axes.data_axis(), sizes[0] if sizes else None)


# --- taps

_CALL = "__call__"
_LAYER = re.compile(r"\[(\d+)\]$")


def normalize(path: str) -> tuple[str, int | None]:
    """Splits a tap into its path ``a/b/c`` and the number of the call, or None.

    >>> normalize("encoder.blocks.3#1")
    ('encoder/blocks/3', 1)
    """
    path, _, number = path.partition("#")
    if number and not number.isdigit():
        raise ValueError(
            f"tap {path + '#' + number!r}: expected the number of a call after '#', as in {path + '#0'!r}."
        )
    return path.replace(".", "/"), int(number) if number else None


def without_layer(spec: str) -> str:
    """Removes the number of a layer from a tap.

    >>> without_layer("blocks/dense[2]")
    'blocks/dense'
    """
    return _LAYER.sub("", spec)


def recorded(intermediates: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yields the path and the outputs of all calls of each recorded submodule."""
    for name, value in intermediates.items():
        path = prefix if name == _CALL else f"{prefix}/{name}" if prefix else str(name)
        if isinstance(value, Mapping):
            yield from recorded(value, path)
        elif path:
            yield path, value if isinstance(value, tuple) else (value,)


def collect(
    taps: Mapping[str, str], intermediates: Mapping[Any, Any], available: Any = None, *, hint: str = ""
) -> dict[str, Array]:
    """Returns the tapped outputs by the user's names.

    ``available`` records every submodule's output, for the message about a missing path, to which ``hint`` is added.

    Raises:
      ValueError: a path does not exist (the message lists those that do, with their shapes), a module with several
        calls is tapped without a call number, or its output is not one array.
    """
    outputs = dict(recorded(intermediates))
    tapped = {}
    for name, spec in taps.items():
        path, call = normalize(without_layer(spec))
        if path not in outputs and available:  # for the message, which lists every submodule
            pick_call(f"tap {name!r}", path, call, dict(recorded(available())), hint=hint)
        value = pick_call(f"tap {name!r}", path, call, outputs)
        if not hasattr(value, "shape"):
            raise ValueError(f"tap {name!r}: expected {path!r} to return one array, got {checks.shape(value)}.")
        if layer := _LAYER.search(spec):
            if not value.ndim or int(layer[1]) >= value.shape[0]:
                raise ValueError(
                    f"tap {name!r}: expected {path!r} to have a layer {layer[1]} on its first axis, as modules under "
                    f"nn.scan do, got {checks.shape(value)}."
                )
            value = value[int(layer[1])]
        tapped[name] = value
    return tapped


def pick_call(what: str, path: str, call: int | None, outputs: Mapping[str, Sequence[Any]], *, hint: str = "") -> Any:
    """Returns a submodule's output in one of its calls, or raises.

    >>> pick_call("tap 'f'", "stem", 1, {"stem": ("first", "second")})
    'second'
    """
    shapes = {name: " and ".join(map(checks.shape, calls)) for name, calls in outputs.items()}
    checks.known(path, shapes, f"{what}, submodule", hint=hint)
    calls = outputs[path]
    if call is None and len(calls) > 1:
        raise ValueError(f"{what}: {path!r} is called {len(calls)} times; name the call, as in '{path}#0'.")
    if (call or 0) >= len(calls):
        raise ValueError(f"{what}: {path!r} is called {len(calls)} times, there is no call {call}.")
    return calls[call or 0]


# --- training flags

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
    """Raises if no flag puts Dropouts or BatchNorms into the mode of the pass.

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
    """Returns whether an argument is a bool or a string, which may be a flag."""
    if isinstance(parameter.default, bool | str):
        return True
    annotation = str(parameter.annotation)
    return any(kind in annotation for kind in ("bool", "'str'", "Literal")) or annotation == "str"
