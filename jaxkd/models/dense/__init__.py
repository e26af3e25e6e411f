"""Networks of dense prediction in Flax linen: maps of features, and a detector.

====================  ========================================================================================
features              `PyramidBackbone`: a residual network with a pyramid of maps, finest first
boxes                 `Detector`: one-stage, with classes and offsets of each anchor
classes of pixels     `Segmenter`: an encoder and a decoder; `ENet`: small bottlenecks
joints                `PoseNetwork`: heatmaps of images; `DynamicKernels`: those of clips, by the frame before
====================  ========================================================================================

Every network is called as ``model(x, train=False)`` with normalized NHWC images of any size and returns a mapping of
names to arrays, which `jaxkd.adapters.linen` hands on as the model's outputs.
"""

from jaxkd.models.dense._backbone import PyramidBackbone
from jaxkd.models.dense._detector import Detector
from jaxkd.models.dense._dynamic_kernels import DynamicKernels
from jaxkd.models.dense._enet import ENet
from jaxkd.models.dense._pose import PoseNetwork
from jaxkd.models.dense._segmenter import Segmenter

__all__ = ["Detector", "DynamicKernels", "ENet", "PoseNetwork", "PyramidBackbone", "Segmenter"]
