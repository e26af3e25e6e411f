"""Transforms of image batches: augmentation, several views, other modalities.

=================  ===================================================================================================
augmentation       `random_crop_flip`, `random_resized_crop`, `shift`, `normalize`: on the device, replayable
mixtures           `mixup`, `cutmix`: of two images of a batch, with the labels of both
several views      `two_views`, `with_pair`: two independent draws of an augmentation; `multi_crop`: any number of views
modalities         `halves`, `spectrum`, `rows`, `columns`, `strokes` (in the order `nearest_next` or `by_scan`): other
                   inputs, computed from an image
=================  ===================================================================================================
"""

from jaxkd.data.vision._augment import (
    CIFAR100_MEAN,
    CIFAR100_STD,
    normalize,
    random_crop_flip,
    random_resized_crop,
    shift,
)
from jaxkd.data.vision._distortions import multi_crop, two_views, with_pair
from jaxkd.data.vision._mixing import cutmix, mixup
from jaxkd.data.vision._modalities import by_scan, columns, halves, nearest_next, rows, spectrum, strokes

__all__ = [
    "CIFAR100_MEAN",
    "CIFAR100_STD",
    "by_scan",
    "columns",
    "cutmix",
    "halves",
    "mixup",
    "multi_crop",
    "nearest_next",
    "normalize",
    "random_crop_flip",
    "random_resized_crop",
    "rows",
    "shift",
    "spectrum",
    "strokes",
    "two_views",
    "with_pair",
]
