"""The points of two networks that are compared: those of the teacher, and those of the student.

A method reads stages by number. ``stem`` comes before the first, ``pooled`` after the last, and the stages of teacher
and student are paired in order: all published pairs have as many.
"""

from __future__ import annotations

from jaxkd import models

Points = tuple[tuple[str, ...], tuple[str, ...]]


def stages(name: str) -> list[str]:
    """The stages of a network, from shallow to deep.

    >>> stages("resnet8")
    ['stage1', 'stage2', 'stage3']
    """
    return [tap for tap in models.taps(name) if tap.startswith("stage") and not tap.endswith("_preact")]


def paired(teacher: str, student: str) -> list[str]:
    """The stages that both have.

    Raises:
      ValueError: one has more than the other.

    >>> paired("resnet20", "resnet8")
    ['stage1', 'stage2', 'stage3']
    """
    ours, theirs = stages(student), stages(teacher)
    if len(ours) != len(theirs):
        raise ValueError(
            f"{teacher}:{student}: the teacher has {len(theirs)} stages and the student {len(ours)}; a method that "
            "compares stage by stage needs as many. Choose another pair, or a method that reads the last layers."
        )
    return ours


def nothing(teacher: str, student: str) -> Points:
    """Logits alone."""
    return (), ()


def pooled(teacher: str, student: str) -> Points:
    """The embeddings."""
    return ("pooled",), ("pooled",)


def second(teacher: str, student: str) -> Points:
    """The second stages."""
    return ("stage2",), ("stage2",)


def last(teacher: str, student: str) -> Points:
    """The last stages."""
    return (stages(teacher)[-1],), (stages(student)[-1],)


def all_stages(teacher: str, student: str) -> Points:
    """All stages."""
    both = tuple(paired(teacher, student))
    return both, both


def stem_and_stages(teacher: str, student: str) -> Points:
    """The stems and all stages."""
    both = ("stem", *paired(teacher, student))
    return both, both


def before_relu(teacher: str, student: str) -> Points:
    """All stages, before their last ReLU."""
    both = tuple(f"{stage}_preact" for stage in paired(teacher, student))
    return both, both


def review(teacher: str, student: str) -> Points:
    """All stages and the embeddings; the teacher's stages before their last ReLU."""
    both = paired(teacher, student)
    return (*(f"{stage}_preact" for stage in both), "pooled"), (*both, "pooled")
