"""Boxes and heatmaps: pure functions of arrays with fixed shapes.

==========  ==========================================================================================================
boxes       `box_iou`, `clip_boxes`; `encode_boxes` and `decode_boxes`: as offsets from anchors
anchors     `anchors` of the levels of a pyramid; `match_anchors` gives `Matches` with objects, `take_matched` reads
            them
detections  `detections` gives `Detections` from a detector's outputs; `non_maximum_suppression` and
            `soft_non_maximum_suppression` give the `Kept` boxes
heatmaps    `draw_heatmaps` of points; `peaks` gives `Peaks`, the points of heatmaps
==========  ==========================================================================================================

Boxes are ``(x0, y0, x1, y1)`` and points ``(x, y)``, in pixels from the top left corner of the image, whose first pixel
has its center at (0.5, 0.5).
"""

from jaxkd.dense._anchors import Matches, anchors, match_anchors, take_matched
from jaxkd.dense._boxes import box_iou, clip_boxes, decode_boxes, encode_boxes
from jaxkd.dense._detections import Detections, detections
from jaxkd.dense._heatmaps import Peaks, draw_heatmaps, peaks
from jaxkd.dense._suppression import Kept, non_maximum_suppression, soft_non_maximum_suppression

__all__ = [
    "Detections",
    "Kept",
    "Matches",
    "Peaks",
    "anchors",
    "box_iou",
    "clip_boxes",
    "decode_boxes",
    "detections",
    "draw_heatmaps",
    "encode_boxes",
    "match_anchors",
    "non_maximum_suppression",
    "peaks",
    "soft_non_maximum_suppression",
    "take_matched",
]
