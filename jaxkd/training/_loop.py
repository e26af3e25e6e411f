"""`fit`: the training loop, with evaluations, logs, checkpoints and exact resume.

Exact resume rests on four things. All that a step reads is in the `TrainState`, PRNG key included, or in the batch. A
checkpoint holds, beside that state, a `Snapshot` of the host: position in the input, logged rows, the sums of the row
that is not complete, the best evaluation. Steps are dispatched in pieces whose boundaries do not depend on where a
process starts. And a snapshot is only taken between two steps, after every row that is due has been logged.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import pathlib
import signal
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd._core import checks, files, tree_paths
from jaxkd._core.lock import alone
from jaxkd._core.progress import Show, Silent, show_progress
from jaxkd.training import _arguments, _compiled_steps, _computation, _run_directory, _run_identity
from jaxkd.training._batch_runner import BatchRunner, make_batch_runner, unmasked_indices
from jaxkd.training._cadence import Cadence, due, exactly_one, make_cadence, splits_of
from jaxkd.training._checkpoint import Checkpoints
from jaxkd.training._clock import SECONDS, Clock
from jaxkd.training._errors._causes import find_cause
from jaxkd.training._inputs import Input
from jaxkd.training._logs import Logs, NonFiniteError, RowAccumulator
from jaxkd.training._process._preemption import Preempted, catch_signals
from jaxkd.training._run_directory import Best, Snapshot
from jaxkd.types import Array, Distiller, TrainState

OnEval = Callable[[int, Mapping[str, float], TrainState], Any]
OnRow = Callable[[Mapping[str, float]], Any]


class FitResult(NamedTuple):
    """Result of a run.

    Attributes:
      state: state after the last step.
      history: rows that were logged: ``{"step": 100, "epoch": 1.0, "train/loss": ..., "eval/accuracy": ...}``, with the
        ``seconds`` since the run began and the ``examples_per_second`` of the training, and ``tokens_per_second`` if
        ``train_metrics`` include `jaxkd.metrics.tokens`. The weight of a term is in the first row, and where it
        changes.
      best: best evaluation, if ``best=`` named a metric.
      best_state: state at that evaluation; None if its checkpoint was damaged, which a warning reports.
    """

    state: TrainState
    history: tuple[dict[str, float], ...]
    best: Best | None = None
    best_state: TrainState | None = None


def fit(
    kd: Distiller,
    train_data: Input,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    key: Array | None = None,
    state: TrainState | None = None,
    eval_data: Input | Mapping[str, Input] | None = None,
    eval_every: int | None = None,
    on_eval: OnEval | None = None,
    on_row: OnRow | None = None,
    best: str | None = None,
    best_mode: str = "max",
    directory: str | os.PathLike[str] | None = None,
    checkpoint_every: int | None = None,
    keep: int | None = 3,
    resume: bool = True,
    config: Any = None,
    log_every: int = 50,
    tensorboard: bool | None = None,
    progress: bool | str = True,
    chunk: int | None = None,
) -> FitResult:
    """Trains, evaluates, logs and saves; resumes if called again with a directory.

    A run may be interrupted at any moment, by an exception, a signal, a full disk or the death of the process. Called
    again, it ends as if it had not been: with the same parameters, bit for bit, and the same files, but for the times
    in them. Ctrl-C saves first; so does SIGTERM, which then ends the process with status 75 (`Preempted`). A damaged
    checkpoint is reported by a warning and set aside, and the one before it is used. A finished run returns its result
    at once; with a larger number of steps, it continues.

    A run is what it computes. A directory with another step or evaluation (models, losses, weights, temperatures,
    schedules, optimizer, transforms), another initial state (the teacher's weights, the student's), other data, another
    key or other evaluations is refused, with the differences. The intervals of logs and checkpoints, ``keep``,
    ``chunk`` and the placement on devices may change. Where another version of JAX writes the same step differently, a
    warning shows the difference and the run is resumed. Of an input without ``fingerprint()`` that does not lie on the
    device, the sizes and the first batch are compared, for which each call reads one batch from a new iterator.

    Args:
      kd: distiller from `jaxkd.distill` or a scheme, unplaced or placed by `jaxkd.parallel`.
      train_data: an input that repeats. A resident input (one with ``arrays`` and ``gather``) is trained on in chunks
        of many steps, each a single dispatch; otherwise batches come from ``batches()``.
      steps: total number of updates. Give this or ``epochs``.
      epochs: total number of passes over ``train_data``.
      key: PRNG key for ``kd.init``. Give this or ``state``.
      state: initial state, for instance with pretrained weights. It is copied.
      eval_data: an input, whose metrics are named ``eval/...``, or several by name: ``{"val": ..., "test": ...}``.
      eval_every: steps between evaluations, by default one epoch. The state after the last step is always evaluated.
      on_eval: called as ``on_eval(step, metrics, state)`` after each evaluation and its checkpoint. The next step
        reuses the state's memory: copy arrays that you keep. An exception that it raises ends the run, which can be
        resumed.
      on_row: called with each row of training and evaluation metrics when it has been logged, for other loggers:
        ``on_row=wandb.log``. Only the first process calls it. A run that resumes repeats the rows since the last
        checkpoint.
      best: a metric of the evaluation, such as ``"eval/accuracy"``, by which the best state is kept.
      best_mode: ``"max"``, or ``"min"`` if smaller values are better.
      directory: folder for checkpoints, metrics and ``config.json``; None writes nothing. While a run uses it, another
        one is refused.
      checkpoint_every: steps between checkpoints, by default as the evaluations. The last step is always saved.
      keep: number of checkpoints to keep, each with the best one at that time; None for all.
      resume: False raises if the directory holds a run.
      config: settings to store with the run (a dict or a dataclass), a record for its reader. A call with others is
        refused.
      log_every: steps that a row of training metrics covers.
      tensorboard: True also writes for TensorBoard; None does if tensorboardX is installed.
      progress: True shows progress: a bar on a terminal, a line from time to time elsewhere. A string also names the
        run there.
      chunk: for resident data, the largest number of steps in one dispatch. By default 1 on a CPU, where XLA runs the
        gradients of convolutions many times slower within a loop than outside of one, and 100 elsewhere.

    Returns:
      The final state, the history, and the best state if ``best`` is given.

    Raises:
      TypeError: an argument is of another kind, such as a model where a distiller is expected.
      ValueError: arguments contradict each other; or the directory holds another run, or the rows of one without its
        checkpoints; or another run is using the directory.
      CheckpointError: a checkpoint could not be written, or all existing ones are damaged.
      NonFiniteError: the loss became NaN or infinite; the message names the term, the step, the examples of the batch
        and the last good checkpoint.
      Preempted: the process received SIGTERM, and the run is saved. It ends the process unless it is caught.

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
    >>> result = fit(kd, train, epochs=2, key=jax.random.key(0), eval_data=val, progress=False)
    >>> result.history[-1]["eval/accuracy"] > result.history[0]["eval/accuracy"] > 0.5
    True
    """
    _arguments.check_distiller(kd)
    _arguments.check_inputs(train_data, eval_data)
    _arguments.check_functions(on_eval=on_eval, on_row=on_row)
    _arguments.check_directory(directory)
    cadence = make_cadence(
        train_data.steps_per_epoch,
        steps=steps,
        epochs=epochs,
        evaluates=eval_data is not None,
        eval_every=eval_every,
        saves=directory is not None,
        checkpoint_every=checkpoint_every,
        log_every=log_every,
        chunk=chunk,
    )
    splits = splits_of(eval_data, best, best_mode)
    exactly_one(key=key, state=state)
    _arguments.check_start(key, state)
    _arguments.check_length(train_data, cadence.steps)
    watched = best and f"{best} ({best_mode})"
    identity = _run_identity.describe_run(train_data, cadence, splits, key=key, best=watched, config=config)
    main = jax.process_index() == 0
    with contextlib.ExitStack() as stack:
        store, snapshot = None, Snapshot()
        stored: Mapping[str, Any] = {}
        if directory is not None:
            directory = pathlib.Path(directory)
            files.check_literal(directory.absolute())
            stack.enter_context(alone(directory))  # before anything in the directory is read
            files.check_inside(directory, "checkpoints")
            store = stack.enter_context(Checkpoints(directory / "checkpoints", keep=keep))
            identity |= _run_identity.describe_data(train_data, splits)
            snapshot, stored = _run_directory.load_snapshot(
                store, directory, identity, steps=cadence.steps, resume=resume
            )
        step = snapshot.step
        # The runner comes before the state, because `init` needs to know the shapes of a batch.
        runner = make_batch_runner(kd, train_data, cadence, snapshot.position if step < cadence.steps else None)
        stack.callback(runner.close)
        batch = runner.batch
        state = kd.init(key, batch) if state is None else jax.tree.map(lambda x: jnp.array(x, copy=True), state)
        state = _own(state, key)
        settings = Settings(kd, cadence, splits, identity, best, best_mode, on_eval, on_row if main else None)
        run = Run(settings, runner, store, snapshot)
        if directory is not None and store is not None:
            manifest = tree_paths.manifest(state)
            _run_directory.check_state(directory, manifest)
            computation = _computation.describe_computation(
                kd, train_data, splits, state=state, batch=batch, stored=stored
            )
            different = _computation.check_computation(directory, stored, computation)
            _run_directory.check_equal(directory, different, stored)
            identity |= computation.identity
            if step:
                state = store.restore(state, step).state
            if main:
                write_config = functools.partial(_run_directory.write_config, directory, identity, manifest)
                write_config(saved=step > 0)
                run.on_first_save = None if step else functools.partial(write_config, saved=True)
                _computation.write_programs(directory, computation.programs)
                run.logs = stack.enter_context(Logs(directory, run.history, tensorboard=tensorboard))
        if step < cadence.steps:
            shown, label = bool(progress), f"{progress}:" if isinstance(progress, str) else "step"
            run.show = stack.enter_context(show_progress(cadence.steps, step, what=label, enabled=shown and main))
            state = run.train(state, step)
        return FitResult(state, tuple(run.history), run.best, run.find_best_state(state))


class Settings(NamedTuple):
    """Arguments of `fit` that do not change during a run, checked and completed."""

    kd: Distiller
    cadence: Cadence
    splits: Mapping[str, Input]
    identity: Mapping[str, Any]
    best: str | None
    best_mode: str
    on_eval: OnEval | None
    on_row: OnRow | None


class Run:
    """Host's part of a run's state, and the loop that advances it."""

    def __init__(self, settings: Settings, runner: BatchRunner, store: Checkpoints | None, snapshot: Snapshot) -> None:
        self.settings, self.runner, self.store = settings, runner, store
        self.history = list(snapshot.history)
        self.best = snapshot.best
        self.steps_per_epoch: int = settings.identity["train"]["steps_per_epoch"]
        self.clock = Clock(settings.identity["train"]["batch_size"], snapshot.step, self.history)
        self.rows = RowAccumulator(settings.cadence, self.steps_per_epoch, snapshot.partial_row, self.clock)
        self._weights: dict[str, float] = {}
        for row in self.history:
            self._changed(row)
        self.logs: Logs | None = None
        self.on_first_save: Callable[[], None] | None = None
        self.show: Show = Silent()
        self._programs: set[Hashable] = set()  # those that this process has run
        self._best_state: TrainState | None = None

    def train(self, state: TrainState, step: int) -> TrainState:
        """Runs the loop from a step to the last, and returns the final state."""
        first, last, received = step, self.settings.cadence.steps, 0
        # False while a step is dispatched, logged or evaluated: host and device then disagree on the step, and a
        # checkpoint would not be one that a run can resume from.
        consistent = True
        with catch_signals(terminable=self.store is not None, every=self.runner.window) as signal_received:
            try:
                while step < last:
                    fetched = self.runner.fetch(step)
                    consistent = False
                    with self._once("compiling", self.runner.program(step, fetched)):
                        state, step = self.runner.run(state, step, fetched)
                    metrics = self.handle_events(state, step)
                    consistent = True
                    if metrics and self.settings.on_eval is not None:
                        self.settings.on_eval(step, metrics, state)
                    if received := signal_received():
                        if received == signal.SIGTERM:
                            raise Preempted(step)
                        raise KeyboardInterrupt(f"after step {step} of {last}")
            except (KeyboardInterrupt, Preempted):
                # An exception that one process alone saw must not trigger a save: the collective save would deadlock.
                if consistent and step > first and (received or jax.process_count() == 1):
                    for row in self.complete_rows(flush=True):
                        self.record(row)
                    self.save(state, step)
                raise
            except NonFiniteError as error:
                raise self._explained(error) from None
        return state

    def handle_events(self, state: TrainState, step: int) -> dict[str, float]:
        """Logs, evaluates and saves what is due; returns the evaluation's metrics."""
        cadence = self.settings.cadence
        evaluates, saves = due(cadence.eval_every, step, cadence), due(cadence.checkpoint_every, step, cadence)
        event = evaluates or saves or step == cadence.steps
        row: dict[str, float] = {}
        for complete in self.complete_rows(flush=event):
            if event and complete["step"] == step:
                row = complete  # held back, to log training and evaluation metrics of a step in one row
            else:
                self.record(complete)
        metrics: dict[str, float] = {}
        if evaluates:
            for name, data in self.settings.splits.items():
                with self._once("compiling", name):
                    means = _compiled_steps.evaluate(self.settings.kd, state, data)
                metrics |= {f"{name}/{metric}": value for metric, value in means.items()}
            row = (row or {"step": step, "epoch": step / self.steps_per_epoch}) | metrics
        if row:
            self.record(row)
        if (metrics and self._is_best(step, metrics)) or saves:
            self.save(state, step)
        if event:
            self.clock.pause()
        return metrics

    def _once(self, name: str, program: Hashable) -> contextlib.AbstractContextManager[None]:
        """Shows the first call of a program, which compiles it, as a phase."""
        known = program in self._programs
        self._programs.add(program)
        return contextlib.nullcontext() if known else self.show.phase(name)

    def complete_rows(self, flush: bool) -> Iterator[dict[str, float]]:
        """Yields complete rows one by one, so that those before a failure are logged.

        Without a flush, the metrics of the last dispatches are not waited for: the device computes those steps while
        the host dispatches the next ones.
        """
        if metrics := self.runner.metrics(flush):
            self.rows.add(*metrics)
        yield from self.rows.complete(0 if flush else 1)
        if metrics and self.clock.step < self.settings.cadence.steps:  # the last step is shown with its row
            self.show(self.clock.step)

    def record(self, row: dict[str, float]) -> None:
        """Adds a row to the history and to the log files."""
        row = {**self._changed(row), SECONDS: self.clock.seconds()}
        self.history.append(row)
        if self.logs is not None:
            self.logs.write(row)
        self.show(int(row["step"]), row)
        if self.settings.on_row is not None:
            self.settings.on_row(dict(row))

    def _changed(self, row: Mapping[str, float]) -> dict[str, float]:
        """Returns a row without the weights of terms that have not changed."""
        weights = {name: value for name, value in row.items() if name.partition("[")[0].endswith("/weight")}
        same = {name for name, value in weights.items() if self._weights.get(name) == value}
        self._weights |= weights
        return {name: value for name, value in row.items() if name not in same}

    def save(self, state: TrainState, step: int) -> None:
        """Saves a checkpoint; without a directory, copies the best state in memory."""
        if self.store is None:
            if self.best is not None and self.best.step == step:
                self._best_state = jax.tree.map(lambda x: jnp.array(x, copy=True), state)
            return
        if not _finite(state):
            # A finite loss may have a gradient that is not finite, which only the next loss would show.
            raise NonFiniteError(f"the parameters are not finite after update {step}.", step, ("parameters",))
        position, identity = self.runner.position(), self.settings.identity
        snapshot = Snapshot(step, position, self.rows.partial_row, tuple(self.history), self.best, identity)
        self.store.save(step, state, snapshot.to_json(), best=None if self.best is None else self.best.step)
        if self.on_first_save is not None:
            self.on_first_save()
            self.on_first_save = None

    def find_best_state(self, state: TrainState) -> TrainState | None:
        """Returns the best state, if need be from its checkpoint."""
        if self.best is None or self.store is None:
            return self._best_state
        if self.best.step == self.settings.cadence.steps:
            return state
        if self.best.step not in self.store.steps():  # damaged; `Checkpoints.recover` has warned about it
            return None
        best_state: TrainState = self.store.restore(state, self.best.step).state
        return best_state

    def _is_best(self, step: int, metrics: Mapping[str, float]) -> bool:
        if self.settings.best is None:
            return False
        checks.known(self.settings.best, metrics, "best: the metric")
        value = metrics[self.settings.best]
        sign = 1 if self.settings.best_mode == "max" else -1
        if math.isnan(value):
            warnings.warn(
                f"best: {self.settings.best!r} is NaN at step {step}, so that this state cannot become the best one. A "
                "metric that includes no example is NaN: check the mask and the labels of the evaluation set.",
                stacklevel=2,
            )
            return False
        if self.best is not None and sign * value <= sign * self.best.value:
            return False
        self.best = Best(step, value)
        return True

    def _explained(self, error: NonFiniteError) -> NonFiniteError:
        """Adds the update's examples, the last good checkpoint and the cause to an error."""
        recent = self.runner.recent(error.step)
        indices = None if recent is None else unmasked_indices(recent)
        batch = ""
        if indices is not None:
            shown = ", ".join(map(str, indices.reshape(-1)[:20].tolist()))
            more = f" and {indices.size - 20} more" if indices.size > 20 else ""
            batch = f' The batch["index"] of its {indices.size} examples: {shown}{more}.'
        last = None if self.store is None else self.store.latest()
        checkpoint = "There is no checkpoint."
        if self.store is not None and last is not None:
            checkpoint = f"The last good checkpoint is that of step {last}, {self.store.directory / str(last)}."
        advice = None if recent is None else find_cause(self.settings.kd, recent, jax.random.key(0))
        if advice is None:
            advice = "A smaller learning rate or optax.clip_by_global_norm may help; check the inputs of that term."
        return NonFiniteError(f"{error}{batch} {checkpoint} {advice}", error.step, error.terms, indices)


def _own(state: TrainState, key: Array | None) -> TrainState:
    """Returns a state whose arrays are strongly typed and can all be donated.

    A careless ``init`` may return one array twice, or the caller's key. An array is donated only once, and the key
    belongs to the caller, so both are copied. A weakly typed array would become strong in the first step, and the step
    would be traced twice.
    """
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
    """Returns whether all trained parameters are finite."""
    params = jax.tree.leaves((state.student.params, state.objective.params))
    floats = [leaf for leaf in params if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return not floats or bool(_all_finite(floats))
