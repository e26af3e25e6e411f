"""`fit`: the training loop. Batches in, evaluations, logs and checkpoints out, and on again after an interruption."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.progress import show_progress
from jaxkd.training import arguments, identity, leaves
from jaxkd.training.checkpoint import Checkpoints
from jaxkd.training.feed import Input, feed
from jaxkd.training.lock import alone
from jaxkd.training.logs import Logs, write_atomically
from jaxkd.training.plan import Plan
from jaxkd.training.running import Best, OnEval, Run
from jaxkd.types import Array, Distiller, TrainState

__all__ = ["Best", "FitResult", "fit"]


class FitResult(NamedTuple):
    """What a run leaves.

    Attributes:
      state: after the last step.
      history: the rows that were logged: ``{"step": 100, "epoch": 1.0, "train/loss": ..., "eval/accuracy": ...}``.
      best: which evaluation was best, if ``best=`` named a metric.
      best_state: the state then; None if its checkpoint was damaged, which was reported.
    """

    state: TrainState
    history: tuple[dict[str, float], ...]
    best: Best | None = None
    best_state: TrainState | None = None


def fit(
    kd: Distiller,
    train: Input,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    key: Array | None = None,
    state: TrainState | None = None,
    evaluate: Input | Mapping[str, Input] | None = None,
    eval_every: int | None = None,
    on_eval: OnEval | None = None,
    best: str | None = None,
    best_mode: str = "max",
    directory: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    keep: int | None = 3,
    resume: bool = True,
    config: Any = None,
    log_every: int = 50,
    tensorboard: bool | None = None,
    progress: bool = True,
    chunk: int = 100,
) -> FitResult:
    """Trains, evaluates, logs and saves; called again with the same directory, it goes on where it was.

    A run that was interrupted, by an exception, a signal, a full disk or the death of the process at any moment, and is
    called again ends with what it would have been: the same parameters, bit for bit, and the same files. Ctrl-C saves
    first; so does SIGTERM, which then ends the process with status 75 (`Preempted`). A damaged checkpoint is reported
    by a warning, set aside, and the one before it is used. A run that is finished returns its result at once, and one
    with more steps than before goes on.

    Args:
      kd: from `jaxkd.distill` or a scheme, as it is or placed by `jaxkd.parallel`.
      train: an input that repeats. One on the device (it has ``arrays`` and ``gather``) is trained on in chunks of many
        steps, each a single dispatch; otherwise batches come from ``batches()``.
      steps: how many updates to make in all. Give this or ``epochs``.
      epochs: the same in passes over ``train``.
      key: for ``kd.init``. Give this or ``state``.
      state: where to begin instead, for instance with pretrained weights. It is copied.
      evaluate: an input, whose metrics are named ``eval/...``, or several by name: ``{"val": ..., "test": ...}``.
      eval_every: steps between evaluations, by default one epoch. The last step is always evaluated.
      on_eval: called as ``on_eval(step, metrics, state)`` after each evaluation and the checkpoint that goes with it.
        The next step takes the state's memory: copy what is to be kept. What it raises ends the run, which can be
        resumed.
      best: a metric of the evaluation, such as ``"eval/accuracy"``: the state that was best in it is kept.
      best_mode: ``"max"``, or ``"min"`` for what should be small.
      directory: for checkpoints, metrics and ``config.json``; None writes nothing. While a run is in it, another one is
        refused.
      checkpoint_every: steps between checkpoints, by default as the evaluations. The last step is always saved.
      keep: how many checkpoints stay, each with the best one at that time; None for all.
      resume: False refuses a directory that holds a run.
      config: settings that identify the run (a dict or a dataclass). They are stored, and a run with other ones refuses
        to go on. ``steps`` and ``epochs`` are not compared, so that a run can be made longer: if a schedule depends on
        them, put them here.
      log_every: steps that a row of training metrics covers.
      tensorboard: write for TensorBoard too; None does if tensorboardX is installed.
      progress: show it: a bar on a terminal, a line now and then elsewhere.
      chunk: for data on the device, the most steps in one dispatch. On a CPU, XLA runs the gradients of convolutions
        many times slower in such a loop of its own than outside of it: use 1 there.

    Returns:
      The final state, the history, and the best state if ``best`` is given.

    Raises:
      ValueError: arguments that contradict each other; a directory that holds a run with other settings, another model
        or other data, with the difference; one in which a run is at work.
      CheckpointError: a checkpoint could not be written; none of those that are there is good.
      NonFiniteError: the loss became NaN or infinite; it names the term, the step, the examples of the batch and the
        last good checkpoint.
      Preempted: SIGTERM came; the run is saved. It ends the process unless it is caught.

    >>> import jaxkd, optax
    >>> from jaxkd import data, losses
    >>> linear = jaxkd.adapters.plain(
    ...     lambda key, x: jnp.zeros((64, 10)), lambda w, x: x.reshape(-1, 64) / 255 @ w, inputs="image"
    ... )
    >>> teacher = jaxkd.teachers.frozen(linear, jaxkd.Variables(jnp.eye(64, 10)))
    >>> objective = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    >>> kd = jaxkd.distill(linear, teacher, objective, optimizer=optax.sgd(0.5))
    >>> train = data.Resident(data.load("digits", "train"), batch_size=64)
    >>> val = data.Resident(data.load("digits", "test"), batch_size=64, shuffle=False)
    >>> result = fit(kd, train, epochs=2, key=jax.random.key(0), evaluate=val, progress=False)
    >>> result.history[-1]["eval/accuracy"] > result.history[0]["eval/accuracy"] > 0.5
    True
    """
    plan = arguments.plan_of(train, steps, epochs, evaluate, eval_every, directory, checkpoint_every, log_every, chunk)
    splits = arguments.splits_of(evaluate, best, best_mode)
    arguments.exactly_one(key=key, state=state)
    this_run = identity.of_run(train, plan, splits, key, best and f"{best} ({best_mode})", config)
    main = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        store, saved = None, _FRESH
        if directory is not None:
            directory = pathlib.Path(directory)
            stack.enter_context(alone(directory))
            store = stack.enter_context(Checkpoints(directory / "checkpoints", keep=keep))
            this_run |= identity.of_data(train, splits)
            saved = _saved(store, directory, this_run, plan, resume)
        step = saved["step"]
        source = feed(kd, train, plan, saved["position"] if step < plan.steps else None)
        stack.callback(source.close)
        state = kd.init(key, source.batch) if state is None else jax.tree.map(lambda x: jnp.array(x, copy=True), state)
        state = _own(state, key)
        run = Run(kd, plan, splits, source, store, this_run, saved, best, best_mode, on_eval)
        if directory is not None and store is not None:
            described = this_run | {"state": leaves.manifest(state)}
            _refuse_another(directory, _config(directory).get("state"), described["state"], "state")
            if step:
                state = store.restore(state, step).state
            if main:
                write_atomically(directory / "config.json", json.dumps(described, indent=2, sort_keys=True) + "\n")
                run.logs = stack.enter_context(Logs(directory, run.history, tensorboard=tensorboard))
        if step < plan.steps:
            run.show = stack.enter_context(show_progress(plan.steps, step, enabled=progress and main))
            state = run.train(state, step)
        return FitResult(state, tuple(run.history), run.best, run.find_best_state(state))


_FRESH: Mapping[str, Any] = {"step": 0, "position": None, "window": {}, "history": [], "best": None}


def _saved(
    store: Checkpoints, directory: pathlib.Path, this_run: Mapping[str, Any], plan: Plan, resume: bool
) -> Mapping[str, Any]:
    """What an earlier call left, or a beginning."""
    if not resume and ((directory / "config.json").exists() or store.steps()):
        raise ValueError(f"{directory} holds a run already. resume=True goes on with it; or choose another directory.")
    last = store.recover()
    saved = _FRESH if last is None else store.extra(last)
    there = saved.get("run") or {name: value for name, value in _config(directory).items() if name != "state"}
    _refuse_another(directory, there, identity.as_known(there, this_run))
    if saved["step"] > plan.steps:
        raise ValueError(
            f"the run in {directory} is at step {saved['step']}, beyond the {plan.steps} asked for. Choose another "
            "directory for a shorter run; checkpoints are read with jaxkd.training.Checkpoints."
        )
    return saved


def _config(directory: pathlib.Path) -> dict[str, Any]:
    """What the run in a directory said of itself; nothing if there is none, or if its file is damaged."""
    try:
        found = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):  # a checkpoint has it too; without one, nothing has been done that could be lost
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_another(directory: pathlib.Path, there: Any, here: Any, what: str | None = None) -> None:
    different = identity.differences({what: there}, {what: here}) if what else identity.differences(there, here)
    if there and different:
        more = [f"... and {len(different) - 20} more"] if len(different) > 20 else []
        raise ValueError(
            f"{directory} holds a different run:\n  " + "\n  ".join(different[:20] + more) + "\nMake it equal to go on "
            "with it, or choose another directory."
        )


def _own(state: TrainState, key: Array | None) -> TrainState:
    """A state whose arrays are all strongly typed, and each its own: one is donated only once, and the key never."""
    seen: set[int] = {id(key)}

    def own(leaf: Any) -> Array:
        if isinstance(leaf, jax.Array) and not getattr(leaf, "weak_type", False) and id(leaf) not in seen:
            seen.add(id(leaf))
            return leaf
        array = jnp.asarray(leaf)
        return jnp.array(array, dtype=array.dtype, copy=True)

    return jax.tree.map(own, state)
