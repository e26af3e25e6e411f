"""Directory of a run: its snapshot, and the check that it is the same run.

    <directory>/config.json      identity of the run, and names, dtypes and shapes of its state
    <directory>/program.txt.gz   text of the programs that it runs
    <directory>/checkpoints/     states, each with a `Snapshot` of the host
    <directory>/metrics.*        rows up to the last step that was logged

A run resumes from its last checkpoint alone. A process may die after it has logged rows beyond that checkpoint; the
snapshot holds the rows logged until the checkpoint, and the log files are cut back to them before the run continues.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxkd._core.files import write_atomically
from jaxkd.training import _run_identity
from jaxkd.training._checkpoint import CheckpointError, Checkpoints
from jaxkd.training._logs import find_logs

# Compared by `check_computation`, but for "first_batch", an entry of earlier versions.
_COMPUTED = ("environment", "batch", "programs", "initial", "first_batch")
_SAVED = "has_checkpoint"


class Best(NamedTuple):
    """Best evaluation so far: number of updates made, and value of the metric."""

    step: int
    value: float


class Snapshot(NamedTuple):
    """State of the host at a checkpoint, which an exact resume needs.

    Attributes:
      step: number of updates made.
      position: position in the training input, for `make_batch_runner`.
      partial_row: sums and counts of the row of metrics that is not complete.
      history: rows that have been logged.
      best: best evaluation so far, or None.
      identity: settings, data and computation of the run, as `describe_run`, `describe_data` and
        `describe_computation` return them.
    """

    step: int = 0
    position: Any = None
    partial_row: Mapping[str, list[float]] = {}
    history: tuple[dict[str, float], ...] = ()
    best: Best | None = None
    identity: Mapping[str, Any] = {}

    def to_json(self) -> dict[str, Any]:
        """Returns the snapshot in a form that JSON can hold.

        >>> Snapshot.from_json(Snapshot(step=3, best=Best(2, 0.5)).to_json()).best
        Best(step=2, value=0.5)
        """
        best = None if self.best is None else self.best._asdict()
        return {**self._asdict(), "history": list(self.history), "best": best}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Snapshot:
        """Builds the snapshot that `to_json` described, after a round trip through JSON.

        Raises:
          CheckpointError: it has other entries, because another version of jaxkd or another program wrote it.
        """
        if set(stored) != set(cls._fields):
            raise CheckpointError(
                f"the checkpoint holds no snapshot of a run: expected the entries {sorted(cls._fields)}, got "
                f"{sorted(stored)}. Another version of jaxkd or another program wrote it; resume the run with that, or "
                "choose another directory."
            )
        best = None if stored["best"] is None else Best(**stored["best"])
        return cls(**{**stored, "history": tuple(stored["history"]), "best": best})


def load_snapshot(
    store: Checkpoints, directory: pathlib.Path, identity: Mapping[str, Any], *, steps: int, resume: bool
) -> tuple[Snapshot, dict[str, Any]]:
    """Returns the snapshot of the last good checkpoint and the stored identity.

    Both are empty for a new run.

    Raises:
      ValueError: the directory holds a different run, or one that has made more steps; or the rows of one without its
        checkpoints; or it holds a run at all and ``resume`` is False.
      CheckpointError: all checkpoints are damaged, or another version wrote them.
    """
    config, logs = _config(directory), find_logs(directory)
    if not resume and (config or (directory / "config.json").exists() or store.steps() or logs):
        raise ValueError(f"{directory} holds a run already. resume=True resumes it; or choose another directory.")
    last = store.recover()
    # A run that is killed before its first checkpoint starts again and writes its rows anew. Any other rows would be
    # lost.
    if last is None and logs and config.get(_SAVED, True):
        raise ValueError(
            f"{directory} holds {', '.join(logs)} of a run, and no checkpoint to resume it from. Nothing was changed. "
            "Restore its folder checkpoints from a copy, move these files away, or choose another directory."
        )
    snapshot = Snapshot() if last is None else Snapshot.from_json(store.extra(last))
    stored = dict(snapshot.identity) or {name: value for name, value in config.items() if name not in ("state", _SAVED)}
    settings = {name: value for name, value in stored.items() if name not in _COMPUTED}
    different = _run_identity.differences(settings, _run_identity.comparable(settings, identity))
    if any(".first_batch." in line for line in different):
        different.append(
            "The first batch is compared, as the input has no fingerprint(). If it holds the same data in an order "
            "that changes from one call to the next, give the order a seed, or the input a fingerprint() of the data."
        )
    check_equal(directory, different, stored)
    if snapshot.step > steps:
        raise ValueError(
            f"the run in {directory} is at step {snapshot.step}, beyond the {steps} asked for. Choose another "
            "directory for a shorter run; checkpoints are read with jaxkd.training.Checkpoints."
        )
    return snapshot, stored


def check_state(directory: pathlib.Path, manifest: Mapping[str, str]) -> None:
    """Raises ValueError if the directory's run has a state with other arrays."""
    stored = _config(directory).get("state")
    if stored:
        check_equal(directory, _run_identity.differences({"state": stored}, {"state": manifest}), stored)


def check_equal(directory: pathlib.Path, different: Sequence[str], stored: Any) -> None:
    """Raises ValueError if a stored run differs, with the lines that say how."""
    if stored and different:
        more = [f"... and {len(different) - 20} more"] if len(different) > 20 else []
        raise ValueError(
            f"{directory} holds a different run:\n  " + "\n  ".join([*different[:20], *more]) + "\nMake these equal to "
            "resume it, or choose another directory."
        )


def write_config(
    directory: pathlib.Path, identity: Mapping[str, Any], manifest: Mapping[str, str], *, saved: bool
) -> None:
    """Writes ``config.json``: the run's identity and the arrays of its state.

    ``saved`` is True once the run has a checkpoint.
    """
    text = json.dumps({**identity, "state": manifest, _SAVED: saved}, indent=2, sort_keys=True)
    write_atomically(directory / "config.json", text + "\n")


def _config(directory: pathlib.Path) -> dict[str, Any]:
    """Returns the content of ``config.json``; empty if it is missing or damaged."""
    try:
        config = json.loads((directory / "config.json").read_text())
    except (OSError, ValueError):  # every checkpoint holds the identity too; without one, there is no work to lose
        return {}
    return config if isinstance(config, dict) else {}
