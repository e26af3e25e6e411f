"""The taps of teacher and student that a method compares.

``stem`` comes before the first stage, ``pooled``, the embedding, after the last. The stages of teacher and student are
paired in order.
"""

from collections.abc import Callable

from jaxkd import models

Taps = tuple[tuple[str, ...], tuple[str, ...]]  # names of taps: those of the teacher and those of the student


def stages(network: str) -> list[str]:
    """Returns the stages of a network, from shallow to deep.

    >>> stages("resnet8")
    ['stage1', 'stage2', 'stage3']
    """
    return [tap for tap in models.taps(network) if tap.startswith("stage") and not tap.endswith("_preact")]


def paired(teacher: str, student: str) -> list[str]:
    """Returns the stages of two networks that have equally many."""
    of_student, of_teacher = stages(student), stages(teacher)
    if len(of_student) != len(of_teacher):
        counts = f"the teacher has {len(of_teacher)} stages and the student {len(of_student)}"
        advice = "needs equally many. Choose another pair, or a method that reads the last layers"
        raise ValueError(f"{teacher}:{student}: {counts}; a method that compares stage by stage {advice}.")
    return of_student


def fixed(*taps: str) -> Callable[[str, str], Taps]:
    """Returns taps of the same names in every network."""
    return lambda teacher, student: (taps, taps)


def each_stage(form: str = "{}", *before: str) -> Callable[[str, str], Taps]:
    """Returns a tap of every stage, and taps before them."""

    def taps(teacher: str, student: str) -> Taps:
        both = (*before, *(form.format(stage) for stage in paired(teacher, student)))
        return both, both

    return taps


def last(teacher: str, student: str) -> Taps:
    return (stages(teacher)[-1],), (stages(student)[-1],)


def fused(teacher: str, student: str) -> Taps:
    """Returns all stages, the teacher's before their last ReLU, and the embeddings."""
    both = paired(teacher, student)
    return (*(f"{stage}_preact" for stage in both), "pooled"), (*both, "pooled")
