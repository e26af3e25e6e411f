"""Images with boxes, masks and key points: sets, and one random map of them.

==========  ==========================================================================================================
reading     `arrays`: any set with objects, masks or key points, such as one of `jaxkd.data.source`, as arrays for
            `jaxkd.data.Resident`; `examples`: its `Examples`, each read when it is asked for, for `jaxkd.data.Stream`
transform   `random_affine`: flip, scale, rotation and shift by example, on the device, replayable
==========  ==========================================================================================================

Entries of a batch, beside those of `jaxkd.data`, each where the set has it:

==============  ================================  ================================================================
``image``       uint8 ``[batch, h, w, c]``        stored values, until `jaxkd.data.normalize`
``boxes``       float32 ``[batch, n, 4]``         ``(x0, y0, x1, y1)`` in pixels, zeros for padding
``box_label``   int32 ``[batch, n]``              class of a box from 0 on, 0 for padding
``box_mask``    bool ``[batch, n]``               False for padding
``label``       uint8 or int32 ``[batch, h, w]``  class of a pixel, 255 for none
``points``      float32 ``[batch, joints, 2]``    ``(x, y)`` in pixels
``point_mask``  bool ``[batch, joints]``          whether a point is annotated, visible and inside of the image
==============  ================================  ================================================================

Coordinates are pixels from the top left corner of the image, whose first pixel has its center at (0.5, 0.5).
"""

from jaxkd.data.dense._affine import random_affine
from jaxkd.data.dense._sets import Examples, arrays, examples

__all__ = ["Examples", "arrays", "examples", "random_affine"]
