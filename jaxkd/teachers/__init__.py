"""Sources of teacher outputs, all as ``Teacher(init, apply, update)``.

================================  ==========================================================================
`frozen`                          a trained model that never changes
`awaited`                         a model that another part of the run trains first, such as an earlier leg of
                                  a relay
`ema`                             the student's exponential moving average: the mean teacher
`ensemble`                        several teachers as one, averaged by `average_logits` or by
                                  `average_probabilities`; each member's outputs under its name
`cached`                          outputs that `jaxkd.cache` computed once, decoded from the batch
`none`                            no teacher: supervised training in the same loop
================================  ==========================================================================
"""

from jaxkd.teachers.awaited import awaited
from jaxkd.teachers.cached import cached
from jaxkd.teachers.ema import ema
from jaxkd.teachers.ensemble import average_logits, average_probabilities, ensemble
from jaxkd.teachers.frozen import frozen
from jaxkd.teachers.none import none

__all__ = [
    "average_logits",
    "average_probabilities",
    "awaited",
    "cached",
    "ema",
    "ensemble",
    "frozen",
    "none",
]
