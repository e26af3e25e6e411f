"""When things happen in a run: a function of its configuration and the step's number, and of nothing else.

A compiled scan over 30 steps and one over 70 need not give the last bits of one over 100. So the pieces into which a
run is cut lie on a grid that starts at step 0; a run that was interrupted goes on with the very pieces, and programs,
that it would have used.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Plan", "due", "next_event", "next_piece"]


class Plan(NamedTuple):
    """What the grid depends on.

    Attributes:
      steps: the last step.
      log_every: steps that a row of training metrics covers.
      eval_every: steps between evaluations; None for none.
      checkpoint_every: steps between checkpoints; None for none.
      chunk: the most steps in one dispatch.
    """

    steps: int
    log_every: int
    eval_every: int | None = None
    checkpoint_every: int | None = None
    chunk: int = 100


def due(every: int | None, step: int, plan: Plan) -> bool:
    """Whether what happens every so many steps, and at the end, happens after this step.

    Args:
      every: None for never.
      step: updates made.
      plan: of the run.

    >>> plan = Plan(steps=10, log_every=1)
    >>> [step for step in range(1, 11) if due(4, step, plan)]
    [4, 8, 10]
    """
    return every is not None and (step % every == 0 or step == plan.steps)


def next_event(plan: Plan, step: int) -> int:
    """The first step after this one with an evaluation or a checkpoint, or the end.

    Args:
      plan: of the run.
      step: updates made.

    >>> next_event(Plan(steps=100, log_every=10, eval_every=30, checkpoint_every=40), 30)
    40
    """
    stops = [every * (step // every + 1) for every in (plan.eval_every, plan.checkpoint_every) if every]
    return min([*stops, plan.steps])


def next_piece(plan: Plan, step: int) -> int:
    """Where the dispatch that begins at this step ends.

    Between two events, a run is cut into equal pieces of at most ``chunk`` steps, which may differ by one. If neither
    of the two intervals divides the other, the distances between events are many; pieces are then powers of two, so
    that the programs to compile stay few.

    Args:
      plan: of the run.
      step: updates made.

    >>> plan = Plan(steps=500, log_every=10, eval_every=250, checkpoint_every=250)
    >>> next_piece(plan, 0), next_piece(plan, 83), next_piece(plan, 166), next_piece(plan, 250)
    (83, 166, 250, 333)
    """
    end = next_event(plan, step)
    intervals = [every for every in (plan.eval_every, plan.checkpoint_every) if every]
    start = max((step // every * every for every in intervals), default=0)
    if not intervals or max(intervals) % min(intervals) == 0:
        count = -(-(end - start) // plan.chunk)
        return next(edge for i in range(1, count + 1) if (edge := start + (end - start) * i // count) > step)
    edge = start
    while edge <= step:
        edge += 1 << (min(end - edge, plan.chunk).bit_length() - 1)
    return edge
