"""Models: a small zoo in Flax linen and nnx, for the experiments and as examples.

====================  ========================================================================================
by name               `create`, `names`, `canonical`; `taps` (paths of the taps of published methods), `margin_norms`
vectors, sequences    `MLP`: hidden layers that can be tapped; `LSTM`: also of images read row by row
self-supervised       `ProjectionHead`: from a feature to prototypes
images                `jaxkd.models.vision`: networks for small images, and a generator; `ViT` (nnx), which `vit_config`
                      and `layer_taps` serve
language              `jaxkd.models.language`: `Decoder`, `Encoder`, `EncoderDecoder`, `GatedRecurrence` (nnx), with
                      `layer_taps`; `generate`, `beam_search`, `generator`, `bind`
speech                `jaxkd.models.speech`: `AcousticLSTM`, `AcousticCNN`, `Conformer` (nnx), with
                      `speech_taps`; `ctc_greedy`, `ctc_beam_search`, `ctc_alignment`
dense prediction      `jaxkd.models.dense`: `PyramidBackbone`, `Detector`, `Segmenter`, `ENet`, `PoseNetwork`,
                      `DynamicKernels`
====================  ========================================================================================

Every classifier of images but `ViT` is called as ``model(x, train=False)`` with normalized NHWC images and returns
logits. The library does not depend on this package: any other model works as well.
"""

from jaxkd.models import dense, language, speech, vision
from jaxkd.models._lstm import LSTM
from jaxkd.models._mlp import MLP
from jaxkd.models._projection_head import ProjectionHead
from jaxkd.models._registry import canonical, create, margin_norms, names, taps
from jaxkd.models.dense import Detector, DynamicKernels, ENet, PoseNetwork, PyramidBackbone, Segmenter
from jaxkd.models.language import (
    Beams,
    Decoder,
    DecoderConfig,
    Encoder,
    EncoderConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    GatedRecurrence,
    Generated,
    KVCache,
    RecurrenceConfig,
    beam_search,
    bind,
    generate,
    generator,
    layer_taps,
    source_inputs,
    token_inputs,
)
from jaxkd.models.speech import (
    AcousticCNN,
    AcousticCNNConfig,
    AcousticLSTM,
    AcousticLSTMConfig,
    Alignment,
    Conformer,
    ConformerConfig,
    SpeechConfig,
    SpeechModel,
    Transcripts,
    ctc_alignment,
    ctc_beam_search,
    ctc_greedy,
    speech_inputs,
    speech_taps,
)
from jaxkd.models.vision._generator import Generator
from jaxkd.models.vision._mobilenet_v2 import MobileNetV2
from jaxkd.models.vision._resnet import (
    ResNet,
    ResNet8,
    ResNet8x4,
    ResNet14,
    ResNet20,
    ResNet32,
    ResNet32x4,
    ResNet44,
    ResNet56,
    ResNet110,
)
from jaxkd.models.vision._resnet50 import BottleneckResNet, ResNet50
from jaxkd.models.vision._shufflenet_v1 import ShuffleNetV1
from jaxkd.models.vision._shufflenet_v2 import ShuffleNetV2
from jaxkd.models.vision._vgg import VGG, VGG8, VGG11, VGG13, VGG16, VGG19
from jaxkd.models.vision._vit import ViT, ViTConfig, vit_config
from jaxkd.models.vision._wide_resnet import WideResNet, WRN16x1, WRN16x2, WRN40x1, WRN40x2

__all__ = [
    "LSTM",
    "MLP",
    "VGG",
    "VGG11",
    "VGG13",
    "VGG16",
    "VGG19",
    "VGG8",
    "BottleneckResNet",
    "Generator",
    "MobileNetV2",
    "ProjectionHead",
    "ResNet",
    "ResNet110",
    "ResNet14",
    "ResNet20",
    "ResNet32",
    "ResNet32x4",
    "ResNet44",
    "ResNet50",
    "ResNet56",
    "ResNet8",
    "ResNet8x4",
    "ShuffleNetV1",
    "ShuffleNetV2",
    "ViT",
    "ViTConfig",
    "WRN16x1",
    "WRN16x2",
    "WRN40x1",
    "WRN40x2",
    "WideResNet",
    "canonical",
    "create",
    "margin_norms",
    "names",
    "taps",
    "vision",
    "vit_config",
    "Beams",
    "Decoder",
    "DecoderConfig",
    "Generated",
    "KVCache",
    "beam_search",
    "bind",
    "generate",
    "generator",
    "layer_taps",
    "token_inputs",
    "language",
    "Encoder",
    "EncoderConfig",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "GatedRecurrence",
    "RecurrenceConfig",
    "source_inputs",
    "AcousticCNN",
    "AcousticCNNConfig",
    "AcousticLSTM",
    "AcousticLSTMConfig",
    "Alignment",
    "Conformer",
    "ConformerConfig",
    "SpeechConfig",
    "SpeechModel",
    "Transcripts",
    "ctc_alignment",
    "ctc_beam_search",
    "ctc_greedy",
    "speech",
    "speech_inputs",
    "speech_taps",
    "Detector",
    "ENet",
    "DynamicKernels",
    "PoseNetwork",
    "PyramidBackbone",
    "Segmenter",
    "dense",
]
