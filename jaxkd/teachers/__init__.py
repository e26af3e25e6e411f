"""Teachers: where teacher outputs come from, all in one shape, ``Teacher(init, apply, update)``.

================================  ==========================================================================
`frozen`                          a trained model that never changes
`awaited`                         a model that another part of the run trains first, such as a relay's leg before
`ema`                             the student's own moving average: the mean teacher
`ensemble`                        several teachers as one, averaged by `average_logits` or by
                                  `average_probabilities`, each one's outputs by its name
`cached`                          outputs computed once and read back by example and augmentation view:
                                  `write_cache`, `open_cache`, `Cache`; `codecs` say what is kept, in how many
                                  bits; `StaleCacheError` refuses those of something else
`none`                            no teacher: plain training in the same loop
================================  ==========================================================================
"""

from jaxkd.teachers.awaited import awaited
from jaxkd.teachers.cache import Cache, StaleCacheError, codecs, open_cache, write_cache, write_shards
from jaxkd.teachers.cached import cached
from jaxkd.teachers.ema import ema
from jaxkd.teachers.ensemble import average_logits, average_probabilities, ensemble
from jaxkd.teachers.frozen import frozen
from jaxkd.teachers.none import none

__all__ = [
    "Cache",
    "StaleCacheError",
    "average_logits",
    "average_probabilities",
    "awaited",
    "cached",
    "codecs",
    "ema",
    "ensemble",
    "frozen",
    "none",
    "open_cache",
    "write_cache",
    "write_shards",
]
