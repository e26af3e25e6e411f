"""Teachers: where teacher outputs come from, all in one shape, ``Teacher(init, apply, update)``.

================================  ==========================================================================
`frozen`                          a trained model that never changes
================================  ==========================================================================
"""

from jaxkd.teachers.frozen import frozen

__all__ = ["frozen"]
