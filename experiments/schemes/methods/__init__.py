"""The methods of the table, in its order; each family has its module."""

from experiments.schemes.method import Method, alone, offline
from experiments.schemes.methods import compression, continual, inputs, online, several_teachers

_ALL = {
    "alone": Method("student alone", "references", lambda setting: alone(setting, setting.steps)),
    "offline": Method("offline distillation", "references", lambda setting: offline(setting, setting.steps)),
}
for _family in (online, several_teachers, inputs, compression, continual):
    _ALL |= _family.METHODS
_GROUPS = [group for group in dict.fromkeys(one.group for one in _ALL.values()) if group != "composed"] + ["composed"]

METHODS: dict[str, Method] = dict(sorted(_ALL.items(), key=lambda item: _GROUPS.index(item[1].group)))
"""Every method by name; schemes that are composed with other objectives come last."""
