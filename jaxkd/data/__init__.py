"""Data: batches as a function of the step, resident on the device or streamed.

============  ========================================================================================================
sets          `Dataset`, a set in memory, and `from_arrays`; `digits` (bundled with scikit-learn); `load` (any prepared
              TFDS name); `source`, a prepared TFDS set with random access, without TensorFlow; `prepared` lists them
parts         `split`: disjoint, deterministic and stratified; `class_incremental`, `class_groups`, `exemplars`: tasks
loaders       `Resident`: the whole set on the device, batches gathered inside a scan; `Stream`: grain reads, decodes
              and transfers ahead, one shard per host; `SameClass`, `same_class`: with another example of each
              example's class; `Tasks`: a sequence of tasks; `Noise`: no data, for data-free distillation;
              `from_batches`: any function that returns an epoch's batches
protocol      `Loader` and `BatchIterator`, between inputs and a training loop; `permutation`, the loaders' shuffle
transforms    `compose`, `example_keys`: of a batch on the device, replayable; `jaxkd.data.vision`: of images
texts         `jaxkd.data.text`: tokenizers, sentences, buckets of lengths; `packed`: documents of a language model
recordings    `jaxkd.data.audio`: recordings, strings of them, noise and speed, log-mel features
annotations   `jaxkd.data.dense`: images with boxes, masks or key points, and a random affine map of all of them
============  ========================================================================================================

A batch is a dict of arrays with the same leading axis:

=========  ===============================  ===========================================================================
``image``  uint8 ``[batch, h, w, c]``       stored values, until `normalize`
``label``  int32 ``[batch]``                a class; in a dict of arrays, labels of any kind, or none
``index``  int32 ``[batch]``                the example's fixed position in its set: memory banks and caches key on it
``epoch``  int32 ``[batch]``                number of the epoch: augmentation keys on it too
``mask``   bool ``[batch]``                 False for rows that fill up the last batch of an epoch, real rows of the
                                            set. Every batch of such a set has a mask; no other set has one.
=========  ===============================  ===========================================================================

Both modes derive their batches from ``(seed, step)`` by the same shuffle. So a `Resident` and a `Stream` of the same
set, seed and batch size give the same batches, an iterator's state is ``{"step": n}`` for both, and a run can resume in
the other mode or on another number of hosts.
"""

from jaxkd.data import audio, dense, text, vision
from jaxkd.data._dataset import Dataset, from_arrays, num_examples
from jaxkd.data._loading import DIGITS_SPLITS, digits, load
from jaxkd.data._noise import Noise
from jaxkd.data._order import permutation
from jaxkd.data._pairs import SameClass, same_class
from jaxkd.data._protocol import BatchIterator, Loader, from_batches
from jaxkd.data._resident import Resident
from jaxkd.data._splits import split
from jaxkd.data._stream import Stream
from jaxkd.data._tasks import Tasks, class_groups, class_incremental, exemplars
from jaxkd.data._tfds_source import Source, prepared, source
from jaxkd.data._transforms import compose, example_keys
from jaxkd.data.text._packed import packed
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
    "audio",
    "by_scan",
    "class_groups",
    "class_incremental",
    "columns",
    "compose",
    "cutmix",
    "dense",
    "digits",
    "example_keys",
    "exemplars",
    "from_arrays",
    "from_batches",
    "halves",
    "load",
    "mixup",
    "multi_crop",
    "nearest_next",
    "normalize",
    "num_examples",
    "packed",
    "permutation",
    "prepared",
    "random_crop_flip",
    "random_resized_crop",
    "rows",
    "same_class",
    "shift",
    "source",
    "spectrum",
    "split",
    "strokes",
    "text",
    "two_views",
    "vision",
    "with_pair",
]
