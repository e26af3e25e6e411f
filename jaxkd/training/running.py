"""What goes on between the first step of a run and its last."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import checks
from jaxkd.progress import Show
from jaxkd.training import evaluation
from jaxkd.training.checkpoint import Checkpoints
from jaxkd.training.feed import Feed, Input
from jaxkd.training.interrupts import Preempted, interrupts
from jaxkd.training.logs import Logs
from jaxkd.training.meter import Meter, NonFiniteError
from jaxkd.training.plan import Plan, due
from jaxkd.types import Array, Distiller, TrainState

__all__ = ["Best", "OnEval", "Run"]

OnEval = Callable[[int, Mapping[str, float], TrainState], Any]


class Best(NamedTuple):
    """The best evaluation so far: the step after which it was made, and its value."""

    step: int
    value: float


class Run:
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
        began, signalled = step, 0
        # Between two steps everything fits together and can be saved; while one is sent off or evaluated, it does not.
        settled = True
        with interrupts(terminable=self.store is not None, every=self.source.window) as asked:
            try:
                while step < self.plan.steps:
                    fetched = self.source.fetch(step)
                    settled = False
                    state, step = self.source.run(state, step, fetched)
                    metrics = self.settle(state, step)
                    settled = True
                    if metrics and self.on_eval is not None:
                        self.on_eval(step, metrics, state)
                    if signalled := asked():
                        if signalled == signal.SIGTERM:
                            raise Preempted(step)
                        raise KeyboardInterrupt(f"after step {step} of {self.plan.steps}")
            except (KeyboardInterrupt, Preempted):
                # What only this process knows of would have it save alone, and wait for the others for ever.
                if settled and step > began and (signalled or jax.process_count() == 1):
                    for row in self.rows(flush=True):
                        self.record(row)
                    self.save(state, step)
                raise
            except NonFiniteError as error:
                raise self._explained(error) from None
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
        if self.best.step not in self.store.steps():  # it was damaged, which was reported
            return None
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

    def _explained(self, error: NonFiniteError) -> NonFiniteError:
        """The same with what the run knows: the examples of the update, and where there is something to go back to."""
        indices = self.source.indices(error.step)
        batch = ""
        if indices is not None:
            shown = ", ".join(map(str, indices.reshape(-1)[:20].tolist())) + (
                f" and {indices.size - 20} more" if indices.size > 20 else ""
            )
            batch = f' The batch["index"] of its {indices.size} examples: {shown}.'
        last = None if self.store is None else self.store.latest()
        there = "There is no checkpoint." if self.store is None or last is None else (
            f"The last good checkpoint is of step {last}, {self.store.directory / str(last)}."
        )  # fmt: skip
        advice = "A smaller learning rate, optax.clip_by_global_norm or a look at that term's inputs may help."
        return NonFiniteError(f"{error}{batch} {there} {advice}", error.step, error.terms, indices)


@jax.jit
def _all_finite(leaves: list[Array]) -> Array:
    return jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in leaves]).all()


def _finite(state: TrainState) -> bool:
    leaves = jax.tree.leaves((state.student.params, state.loss.params))
    floats = [leaf for leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return not floats or bool(_all_finite(floats))
