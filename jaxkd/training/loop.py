"""`fit`: the training loop. Batches in, evaluations, logs and checkpoints out, and on again after an interruption."""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import checks
from jaxkd.training import evaluation, identity
from jaxkd.training.checkpoint import Checkpoints
from jaxkd.training.feed import Feed, Input, feed
from jaxkd.training.interrupts import interrupts
from jaxkd.training.logs import Logs, write_atomically
from jaxkd.training.meter import Meter, NonFiniteError
from jaxkd.training.plan import Plan, due
from jaxkd.training.progress import Show, show_progress
from jaxkd.types import Array, Distiller, TrainState

__all__ = ["Best", "FitResult", "fit"]

OnEval = Callable[[int, Mapping[str, float], TrainState], Any]


class Best(NamedTuple):
    """The best evaluation so far: the step after which it was made, and its value."""

    step: int
    value: float


class FitResult(NamedTuple):
    """What a run leaves.

    Attributes:
      state: after the last step.
      history: the rows that were logged: ``{"step": 100, "epoch": 1.0, "train/loss": ..., "eval/accuracy": ...}``.
      best: which evaluation was best, if ``best=`` named a metric.
      best_state: the state then.
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

    A run that was interrupted, by Ctrl-C, an exception or the death of the process, and is called again ends with what
    it would have been: the same parameters, bit for bit on one device, and the same files. Ctrl-C saves first. A run
    that is finished returns its result at once, and one with more steps than before goes on.

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
      directory: for checkpoints, metrics and ``config.json``; None writes nothing.
      checkpoint_every: steps between checkpoints, by default as the evaluations. The last step is always saved.
      keep: how many checkpoints stay, beside the best; None for all.
      resume: False refuses a directory that holds a run.
      config: settings that identify the run (a dict or a dataclass). They are stored, and a run with other ones refuses
        to go on. ``steps`` and ``epochs`` are not compared, so that a run can be made longer: if a schedule depends on
        them, put them here.
      log_every: steps that a row of training metrics covers.
      tensorboard: write for TensorBoard too; None does if tensorboardX is installed.
      progress: show it: a bar on a terminal, a line now and then elsewhere.
      chunk: for data on the device, the most steps in one dispatch.

    Returns:
      The final state, the history, and the best state if ``best`` is given.

    Raises:
      ValueError: arguments that contradict each other; a directory that holds a different run, with the difference.
      CheckpointError: a checkpoint of a state of another structure.
      NonFiniteError: the loss became NaN or infinite; it names the term, the step and the last good checkpoint.

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
    plan = _plan(train, steps, epochs, evaluate, eval_every, directory, checkpoint_every, log_every, chunk)
    splits = _splits(evaluate, best, best_mode)
    _exactly_one(key=key, state=state)
    this_run = identity.of_run(train, plan, splits, key, best and f"{best} ({best_mode})", config)
    main = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        store = None
        if directory is not None:
            directory = pathlib.Path(directory)
            store = stack.enter_context(Checkpoints(directory / "checkpoints", keep=keep))
        saved = _saved(store, directory, this_run, plan, resume)
        step = saved["step"]
        source = feed(kd, train, plan, saved["position"] if step < plan.steps else None)
        stack.callback(source.close)
        state = kd.init(key, source.batch) if state is None else jax.tree.map(lambda x: jnp.array(x, copy=True), state)
        state = _own(state, key)
        if store is not None and step:
            state = store.restore(state, step).state
        run = _Run(kd, plan, splits, source, store, this_run, saved, best, best_mode, on_eval)
        if directory is not None and main:
            write_atomically(directory / "config.json", json.dumps(this_run, indent=2, sort_keys=True) + "\n")
            run.logs = stack.enter_context(Logs(directory, run.history, tensorboard=tensorboard))
        if step < plan.steps:
            run.show = stack.enter_context(show_progress(plan.steps, step, enabled=progress and main))
            state = run.train(state, step)
        return FitResult(state, tuple(run.history), run.best, run.find_best_state(state))


class _Run:
    """What changes while a run goes on, beside its state."""

    def __init__(
        self,
        kd: Distiller,
        plan: Plan,
        splits: Mapping[str, Input],
        source: Feed,
        store: Checkpoints | None,
        this_run: Mapping[str, Any],
        saved: Mapping[str, Any],
        watch: str | None,
        mode: str,
        on_eval: OnEval | None,
    ) -> None:
        self.kd, self.plan, self.splits, self.source, self.store = kd, plan, splits, source, store
        self.this_run, self.watch, self.mode, self.on_eval = this_run, watch, mode, on_eval
        self.history: list[dict[str, float]] = list(saved["history"])
        self.best = Best(*saved["best"]) if saved["best"] else None
        self.meter = Meter(plan, this_run["train"]["steps_per_epoch"], saved["window"])
        self.logs: Logs | None = None
        self.show: Show = lambda step, row=None: None
        self._best_state: TrainState | None = None

    def train(self, state: TrainState, step: int) -> TrainState:
        """The loop itself."""
        began = step
        # Between two steps everything fits together and can be saved; while one is sent off or evaluated, it does not.
        settled = True
        with interrupts() as interrupted:
            try:
                while step < self.plan.steps:
                    fetched = self.source.fetch(step)
                    settled = False
                    state, step = self.source.run(state, step, fetched)
                    metrics = self.settle(state, step)
                    settled = True
                    if metrics and self.on_eval is not None:
                        self.on_eval(step, metrics, state)
                    if interrupted():
                        raise KeyboardInterrupt(f"after step {step} of {self.plan.steps}")
            except KeyboardInterrupt:
                if settled and step > began:
                    for row in self.rows(flush=True):
                        self.record(row)
                    self.save(state, step)
                raise
            except NonFiniteError as error:
                raise NonFiniteError(f"{error} {self._advice()}", error.step, error.terms) from None
        return state

    def settle(self, state: TrainState, step: int) -> dict[str, float]:
        """Logs, evaluates and saves what is due after a step; returns the metrics of the evaluation."""
        evaluates, saves = due(self.plan.eval_every, step, self.plan), due(self.plan.checkpoint_every, step, self.plan)
        event = evaluates or saves or step == self.plan.steps
        held: dict[str, float] = {}
        for row in self.rows(flush=event):
            if event and row["step"] == step:
                held = row  # one row for training and evaluation
            else:
                self.record(row)
        metrics: dict[str, float] = {}
        if evaluates:
            for name, data in self.splits.items():
                found = evaluation.evaluate(self.kd, state, data)
                metrics |= {f"{name}/{metric}": value for metric, value in found.items()}
            held = (held or {"step": step, "epoch": step / self.this_run["train"]["steps_per_epoch"]}) | metrics
        if held:
            self.record(held)
        if (metrics and self._is_best(step, metrics)) or saves:
            self.save(state, step)
        return metrics

    def rows(self, flush: bool) -> Iterator[dict[str, float]]:
        """The rows that are full, as they come, so that those before a failure are kept.

        Without a flush, the last dispatch, or the last few, are left alone: the device works on them while the host
        sends the next.
        """
        if found := self.source.metrics(flush):
            self.meter.add(*found)
            self.show(found[0])
        yield from self.meter.rows(0 if flush else 1)

    def record(self, row: dict[str, float]) -> None:
        """Logs a row."""
        self.history.append(row)
        if self.logs is not None:
            self.logs.write(row)
        self.show(int(row["step"]), row)

    def save(self, state: TrainState, step: int) -> None:
        """Saves everything that the next call needs; in memory, if there is no directory, only the best."""
        if self.store is None:
            if self.best is not None and self.best.step == step:
                self._best_state = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
            return
        if not _finite(state):
            # The gradient of a finite loss need not be: the next loss would be the first to show it.
            raise NonFiniteError(f"the parameters are not finite after update {step}.", step, ("parameters",))
        extra = {
            "step": step,
            "position": self.source.position(),
            "window": self.meter.window,
            "history": self.history,
            "best": self.best,
            "run": self.this_run,
        }
        self.store.save(step, state, extra, best=None if self.best is None else self.best.step)

    def find_best_state(self, state: TrainState) -> TrainState | None:
        """The best state, from where it is."""
        if self.best is None or self.store is None:
            return self._best_state
        if self.best.step == self.plan.steps:
            return state
        best_state: TrainState = self.store.restore(state, self.best.step).state
        return best_state

    def _is_best(self, step: int, metrics: Mapping[str, float]) -> bool:
        if self.watch is None:
            return False
        checks.known(self.watch, metrics, "best: the metric")
        value = metrics[self.watch]
        sign = 1 if self.mode == "max" else -1
        if math.isnan(value) or (self.best is not None and sign * value <= sign * self.best.value):
            return False
        self.best = Best(step, value)
        return True

    def _advice(self) -> str:
        last = None if self.store is None else self.store.latest()
        there = "There is no checkpoint." if self.store is None or last is None else (
            f"The last good checkpoint is of step {last}, {self.store.directory / str(last)}."
        )  # fmt: skip
        return f"{there} A smaller learning rate, optax.clip_by_global_norm or a look at that term's inputs may help."


def _plan(
    train: Input,
    steps: int | None,
    epochs: int | None,
    evaluate: Any,
    eval_every: int | None,
    directory: Any,
    checkpoint_every: int | None,
    log_every: int,
    chunk: int,
) -> Plan:
    _exactly_one(steps=steps, epochs=epochs)
    given = {"steps": steps, "epochs": epochs, "eval_every": eval_every, "checkpoint_every": checkpoint_every}
    for name, value in {**given, "log_every": log_every, "chunk": chunk}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected a positive number, got {value}.")
    if evaluate is None and eval_every is not None:
        raise ValueError("eval_every is given, and nothing to evaluate: give evaluate=, an input or several by name.")
    if directory is None and checkpoint_every is not None:
        raise ValueError("checkpoint_every is given, and nowhere to save: give directory=.")
    epoch = train.steps_per_epoch
    if evaluate is not None and eval_every is None:
        eval_every = epoch
    if directory is not None and checkpoint_every is None:
        checkpoint_every = eval_every or epoch
    total = steps if steps is not None else (epochs or 0) * epoch
    return Plan(total, log_every, eval_every, checkpoint_every, chunk)


def _exactly_one(**given: Any) -> None:
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        both = " and ".join(names) or "neither"
        raise ValueError(f"expected exactly one of {' and '.join(given)}, got {both}.")


def _splits(evaluate: Any, best: str | None, best_mode: str) -> dict[str, Input]:
    if best_mode not in ("max", "min"):
        raise ValueError(f"best_mode: expected 'max' or 'min', got {best_mode!r}.")
    if evaluate is None:
        if best is not None:
            raise ValueError(f"best={best!r} needs an evaluation: give evaluate=, an input or several by name.")
        return {}
    splits = dict(evaluate) if isinstance(evaluate, Mapping) else {"eval": evaluate}
    if "train" in splits:
        raise ValueError("evaluate: the name 'train' is that of the training metrics; choose another.")
    return splits


def _saved(
    store: Checkpoints | None, directory: pathlib.Path | None, this_run: Mapping[str, Any], plan: Plan, resume: bool
) -> dict[str, Any]:
    """What an earlier call left, or a beginning."""
    fresh: dict[str, Any] = {"step": 0, "position": None, "window": {}, "history": [], "best": None}
    if store is None or directory is None:
        return fresh
    path, last = directory / "config.json", store.latest()
    if not resume and (path.exists() or last is not None):
        raise ValueError(f"{directory} holds a run already. resume=True goes on with it; or choose another directory.")
    saved = fresh if last is None else store.extra(last)
    there = saved.get("run") or (json.loads(path.read_text()) if path.exists() else None)
    if there is not None and (different := identity.differences(there, this_run)):
        raise ValueError(
            f"{directory} holds a different run:\n  " + "\n  ".join(different) + "\nMake the settings equal to go on "
            "with it, or choose another directory."
        )
    if saved["step"] > plan.steps:
        raise ValueError(
            f"the run in {directory} is at step {saved['step']}, beyond the {plan.steps} asked for. Choose another "
            "directory for a shorter run; checkpoints are read with jaxkd.training.Checkpoints."
        )
    return saved


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


@jax.jit
def _all_finite(leaves: list[Array]) -> Array:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()


def _finite(state: TrainState) -> bool:
    leaves = jax.tree.leaves((state.student.params, state.loss.params))
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return not floats or bool(_all_finite(floats))
