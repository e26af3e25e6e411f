"""The gap between teacher and student: students of teachers of all sizes, and the chains that bridge it."""

from __future__ import annotations

from collections.abc import Callable

from experiments.schemes.rows_of.chains import assistants
from experiments.schemes.trials import Row, Setting, Trial, taught

SIZES = ("large", "teacher", "wide", "huge")


def of_size(size: str) -> Callable[[Setting], Trial]:
    """The usual student of a teacher of a size, for as many steps as a student alone."""

    def build(setting: Setting) -> Trial:
        return taught(
            setting, setting.steps, setting.student, lambda own: setting.teacher(own, size, size), needs=(size,)
        )

    return build


ROWS = {
    **{f"gap_{size}": Row(f"teacher of size {size}", "teacher size", of_size(size)) for size in SIZES},
    "assistant": Row("teacher, one assistant", "assistants", assistants("middle")),
    "assistants": Row("teacher, two assistants", "assistants", assistants("large", "middle")),
    "found_chain": Row(
        "teacher, the chain that was found",
        "assistants",
        lambda setting: assistants(*setting.chain[:-1])(setting),
        found=True,
    ),
    "huge_assistant": Row("huge, one assistant", "assistants", assistants("large", teacher="huge")),
    "huge_assistants": Row(
        "huge, three assistants", "assistants", assistants("wide", "teacher", "large", teacher="huge")
    ),
}
