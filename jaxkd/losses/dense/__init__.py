"""Dense losses: detection, segmentation and pose, with many predictions per image.

====================================  ====================================================================
`jaxkd.losses.dense.detection`        `class_weighted_cross_entropy`, `bounded_regression`,
                                      `imitation_mask`, `feature_imitation`
`jaxkd.losses.dense.anchors`          `sigmoid_focal`, `smooth_l1`
`jaxkd.losses.dense.focal`            `focal_global`
`jaxkd.losses.dense.segmentation`     `pixel_kl`, `pair_affinity`
`jaxkd.losses.dense.regions`          `region_moments`, `region_affinity`
`jaxkd.losses.dense.pose`             `heatmap_mse`, `joint_structure`
====================================  ====================================================================
"""

from .anchors import sigmoid_focal, smooth_l1
from .detection import (
    bounded_regression,
    class_weighted_cross_entropy,
    feature_imitation,
    imitation_mask,
)
from .focal import focal_global
from .pose import heatmap_mse, joint_structure
from .regions import region_affinity, region_moments
from .segmentation import pair_affinity, pixel_kl

__all__ = [
    "sigmoid_focal",
    "smooth_l1",
    "class_weighted_cross_entropy",
    "bounded_regression",
    "imitation_mask",
    "feature_imitation",
    "focal_global",
    "pixel_kl",
    "pair_affinity",
    "region_moments",
    "region_affinity",
    "heatmap_mse",
    "joint_structure",
]
