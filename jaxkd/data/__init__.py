"""Data: batches that are a function of the step, for a device that never waits.

======================  ==============================================================================================
`dataset`               `Dataset`, a set in memory: `digits` (nothing to download), `load` (any TFDS name),
                        `from_arrays` (your own)
`splits`                `split`: disjoint, deterministic, stratified parts of a set
`tfds_source`           `source`: a prepared TFDS set, read at random from array_record files, without TensorFlow
`protocol`              `Loader` and `BatchIterator`, what a training loop asks of either mode
`resident`              `Resident`: the whole set on the device, batches gathered inside a scan
`stream`                `Stream`: grain reads, decodes and sends ahead; one shard for each host
`order`                 `permutation`: the shuffle that both modes share, computed for any position alone
`pairs`                 `SameClass`, `same_class`: beside each example another one of its class
`distortions`           `two_views`, `with_pair`: an augmentation of two views, of pairs
`tasks`                 `class_incremental`, `class_groups`, `exemplars`, `Tasks`: one task after another
`noise`                 `Noise`: an input of no data, for data-free distillation
`modalities`            `halves`, `spectrum`, `rows`, `columns`, `strokes`: other inputs of the same example
`augment`               `random_crop_flip`, `shift`, `normalize`, `compose`: on the device, replayable
======================  ==============================================================================================

A batch is a dict of arrays with the same leading axis:

=========  ===============================  ===========================================================================
``image``  uint8 ``[batch, h, w, c]``       as stored, until `normalize`
``label``  int32 ``[batch]``
``index``  int32 ``[batch]``                the example's fixed position in its set: banks and caches key on it
``epoch``  int32 ``[batch]``                the pass that the example is drawn in: augmentation keys on it too
``mask``   bool ``[batch]``                 True for what counts; only where the last batch of a pass is filled up, and
                                            then in every batch. The filling is real rows that were seen before.
=========  ===============================  ===========================================================================

Both modes take their batches from ``(seed, step)`` by the same shuffle. So a `Resident` and a `Stream` of the same
set, seed and batch size give the same batches, an iterator's state is ``{"step": n}`` for both, and a run can be
resumed in the other mode or on another number of hosts.

Only experiments, benchmarks and tests import this package: losses and training know batches, not where they are from.
"""

from jaxkd.data.augment import (
    CIFAR100_MEAN,
    CIFAR100_STD,
    compose,
    example_keys,
    normalize,
    random_crop_flip,
    shift,
)
from jaxkd.data.dataset import DIGITS_SPLITS, Dataset, digits, from_arrays, load, num_examples
from jaxkd.data.distortions import two_views, with_pair
from jaxkd.data.modalities import by_scan, columns, halves, nearest_next, rows, spectrum, strokes
from jaxkd.data.noise import Noise
from jaxkd.data.order import permutation
from jaxkd.data.pairs import SameClass, same_class
from jaxkd.data.protocol import BatchIterator, Loader
from jaxkd.data.resident import Resident
from jaxkd.data.splits import split
from jaxkd.data.stream import Stream
from jaxkd.data.tasks import Tasks, class_groups, class_incremental, exemplars
from jaxkd.data.tfds_source import Source, prepared, source

__all__ = [
    "CIFAR100_MEAN",
    "CIFAR100_STD",
    "DIGITS_SPLITS",
    "BatchIterator",
    "Dataset",
    "Loader",
    "Noise",
    "Resident",
    "SameClass",
    "Source",
    "Stream",
    "Tasks",
    "by_scan",
    "class_groups",
    "class_incremental",
    "columns",
    "compose",
    "digits",
    "example_keys",
    "exemplars",
    "from_arrays",
    "halves",
    "load",
    "nearest_next",
    "normalize",
    "num_examples",
    "permutation",
    "prepared",
    "random_crop_flip",
    "rows",
    "same_class",
    "shift",
    "source",
    "spectrum",
    "split",
    "strokes",
    "two_views",
    "with_pair",
]
