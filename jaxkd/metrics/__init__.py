"""Metrics as (sum, count) pairs, merged before they are divided.

A mean of means is wrong where batches differ in the number of unmasked examples: masks, a ragged last batch, an uneven
split over devices. `jaxkd.types.Mean` postpones the division. `compute`, `task_accuracies` and its summaries,
`spearman`, `retrieval`, `neighbor_votes`, `average_precision`, `distinct_n` and `edit_distance` run on the host; all
other functions can be used under jit too.

==================================  =========================================================================
`from_values`                       a metric of one value per example
`merge`, `total`, `psum`, `join`    metrics of two parts, of stacked parts, of all devices, of several groups
`compute`                           divides, on the host
`derived`                           a value computed after merging, such as perplexity
`total_of`, `widened`               a sum of means with counts of their own
`report`                            the metrics of a function of the context, or of several
`classification`, `tokens`          accuracy, cross-entropy and agreement with the teacher; and perplexity
`imitation`, `kl_bounds`            divergences from the teacher, acceptance of drafts; bounds from top-k outputs
`calibration`                       expected calibration error
`binary`, `multilabel`              accuracy, cross-entropy, precision, recall and F1 of yes-or-no decisions
`segmentation`, `regression`        accuracy and IoU of pixels; errors of numbers
`keypoints`, `average_precision`    share of the joints found; mean average precision of boxes
`per_teacher`, `per_student`        metrics of each teacher of an ensemble, of each part of a student
`per_task`, `task_accuracies`       accuracy by task of a sequence
`average_accuracy`, `forgetting`    summaries of such accuracies; `backward_transfer`
`linear_cka`, `svcca`               similarity of two layers; `layer_similarity`: as metrics of an evaluation
`spearman`, `retrieval`             of the embeddings of a whole set; `distinct_n`, `edit_distance`: of texts
`neighbor_votes`                    the classes of the nearest neighbors
`Packed`, `pack`, `packing`         metrics in one array
==================================  =========================================================================
"""

from jaxkd.metrics._average_precision import average_precision
from jaxkd.metrics._binary import binary, multilabel
from jaxkd.metrics._calibration import calibration
from jaxkd.metrics._classification import classification, per_student, per_teacher
from jaxkd.metrics._derived import derived, total_of, widened
from jaxkd.metrics._distributions import imitation, kl_bounds
from jaxkd.metrics._forgetting import average_accuracy, backward_transfer, forgetting, per_task, task_accuracies
from jaxkd.metrics._keypoints import keypoints
from jaxkd.metrics._means import compute, from_values, join, merge, psum, report, total
from jaxkd.metrics._packed_metrics import Packed, pack, packing
from jaxkd.metrics._regression import regression
from jaxkd.metrics._retrieval import neighbor_votes, retrieval, spearman
from jaxkd.metrics._segmentation import segmentation
from jaxkd.metrics._similarity import layer_similarity, linear_cka, svcca
from jaxkd.metrics._tokens import distinct_n, edit_distance, tokens

__all__ = [
    "Packed",
    "average_accuracy",
    "average_precision",
    "backward_transfer",
    "binary",
    "calibration",
    "classification",
    "compute",
    "derived",
    "distinct_n",
    "edit_distance",
    "forgetting",
    "from_values",
    "imitation",
    "join",
    "keypoints",
    "kl_bounds",
    "layer_similarity",
    "linear_cka",
    "merge",
    "multilabel",
    "neighbor_votes",
    "pack",
    "packing",
    "per_student",
    "per_task",
    "per_teacher",
    "psum",
    "regression",
    "report",
    "retrieval",
    "segmentation",
    "spearman",
    "svcca",
    "task_accuracies",
    "tokens",
    "total",
    "total_of",
    "widened",
]
