"""Networks for images: the CIFAR-100 distillation benchmark's, and a generator.

====================  ========================================================================================
`resnet`              `ResNet` and its builders `ResNet8` … `ResNet110`, `ResNet8x4`, `ResNet32x4`
`wide_resnet`         `WideResNet` and its builders `WRN16x1`, `WRN16x2`, `WRN40x1`, `WRN40x2`
`resnet50`            `BottleneckResNet` and its builder `ResNet50`
`vgg`                 `VGG` and its builders `VGG8` … `VGG19`
`mobilenet_v2`        `MobileNetV2`, half the paper's width
`shufflenet_v1`       `ShuffleNetV1`, three groups
`shufflenet_v2`       `ShuffleNetV2`, size 1
`generator`           `Generator`: images from noise, for data-free distillation
====================  ========================================================================================
"""
