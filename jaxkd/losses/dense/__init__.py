"""Dense losses: detection, segmentation and pose, where one image has many predictions.

====================================  ====================================================================
`jaxkd.losses.dense.detection`        `class_weighted_cross_entropy`, `bounded_regression`,
                                      `imitation_mask`, `feature_imitation`
`jaxkd.losses.dense.segmentation`     `pixel_kl`, `pair_affinity`
`jaxkd.losses.dense.regions`          `region_moments`, `region_affinity`
`jaxkd.losses.dense.pose`             `heatmap_mse`, `joint_structure`
====================================  ====================================================================
"""

from jaxkd.losses.dense.detection import (
    bounded_regression,
    class_weighted_cross_entropy,
    feature_imitation,
    imitation_mask,
)
from jaxkd.losses.dense.pose import heatmap_mse, joint_structure
from jaxkd.losses.dense.regions import region_affinity, region_moments
from jaxkd.losses.dense.segmentation import pair_affinity, pixel_kl

__all__ = [
    "class_weighted_cross_entropy",
    "bounded_regression",
    "imitation_mask",
    "feature_imitation",
    "pixel_kl",
    "pair_affinity",
    "region_moments",
    "region_affinity",
    "heatmap_mse",
    "joint_structure",
]
