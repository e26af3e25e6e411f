"""Boxes and heatmaps: pure functions of arrays with fixed shapes.

=========  ===========================================================================================================
boxes      `box_iou`
=========  ===========================================================================================================

Boxes are ``(x0, y0, x1, y1)`` and points ``(x, y)``, in pixels from the top left corner of the image, whose first pixel
has its center at (0.5, 0.5).
"""

from jaxkd.dense._boxes import box_iou

__all__ = ["box_iou"]
