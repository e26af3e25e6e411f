"""Boxes and heatmaps: pure functions of arrays with fixed shapes.

=========  ===========================================================================================================
boxes      `box_iou`
heatmaps   `draw_heatmaps`, `peaks`, which returns `Peaks`
=========  ===========================================================================================================

Boxes are ``(x0, y0, x1, y1)`` and points ``(x, y)``, in pixels from the top left corner of the image, whose first pixel
has its center at (0.5, 0.5).
"""

from jaxkd.dense._boxes import box_iou
from jaxkd.dense._heatmaps import Peaks, draw_heatmaps, peaks

__all__ = ["Peaks", "box_iou", "draw_heatmaps", "peaks"]
