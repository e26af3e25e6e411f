"""Teachers: where teacher outputs come from, all in one shape, ``Teacher(init, apply, update)``.

================================  ==========================================================================
`frozen`                          a trained model that never changes
`none`                            no teacher: plain training in the same loop
================================  ==========================================================================
"""

from jaxkd.teachers.frozen import frozen
from jaxkd.teachers.none import none

__all__ = ["frozen", "none"]
