"""Sources of teacher outputs, all as ``Teacher(init, apply, update)``.

================================  ==========================================================================
`frozen`                          a trained model that never changes
`placeholder`                     a model that another part of the run trains first, such as an earlier phase
`ema`                             the student's exponential moving average: the mean teacher
`ensemble`                        several teachers as one, by `average_logits` or `average_probabilities`
`cached`                          outputs that `jaxkd.cache` computed once, decoded from the batch
`none`                            no teacher: supervised training in the same loop
================================  ==========================================================================
"""

from jaxkd.teachers._cached import cached
from jaxkd.teachers._ema import ema
from jaxkd.teachers._ensemble import average_logits, average_probabilities, ensemble
from jaxkd.teachers._frozen import frozen
from jaxkd.teachers._none import none
from jaxkd.teachers._placeholder import placeholder

__all__ = [
    "average_logits",
    "average_probabilities",
    "cached",
    "ema",
    "ensemble",
    "frozen",
    "none",
    "placeholder",
]
