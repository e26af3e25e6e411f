"""The table's rows, in its order; each is made in the module of its group."""

from __future__ import annotations

from experiments.schemes.rows_of import (
    capacity,
    chains,
    compression,
    lifelong,
    modalities,
    online,
    own_teachers,
    several_teachers,
    without_data,
)
from experiments.schemes.trials import Row, alone, offline

_REFERENCES = {
    "alone": Row("student alone", "references", lambda setting: alone(setting, setting.steps)),
    "offline": Row("offline distillation", "references", lambda setting: offline(setting, setting.steps)),
}
_ALL = {
    **_REFERENCES,
    **online.ROWS,
    **own_teachers.ROWS,
    **chains.ROWS,
    **several_teachers.ROWS,
    **capacity.ROWS,
    **modalities.ROWS,
    **without_data.ROWS,
    **compression.ROWS,
    **lifelong.ROWS,
}
_GROUPS = [group for group in dict.fromkeys(row.group for row in _ALL.values()) if group != "composed"] + ["composed"]

ROWS: dict[str, Row] = dict(sorted(_ALL.items(), key=lambda item: _GROUPS.index(item[1].group)))
"""Every row, by name; those of schemes that are composed with other objectives come last."""
