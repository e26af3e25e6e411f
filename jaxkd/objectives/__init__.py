"""Objectives: losses bound to their inputs, which may have parameters and state.

==================================  =========================================================================
`term`, `combine`                   a loss bound to paths; a sum of objectives, which nests
`lookup`, `replace`, `mask_out`     parts of an objective of your own
`masked_mean`, `reduce_values`
`linear_kd`                         labels and teacher of a language model, in one pass over the vocabulary
`model_loss`                        a scalar loss among a model's outputs
`select`                            an objective between two parts of the student: peers, exits, views
`detection`                         classes and boxes of a detector, from labeled boxes
`with_derived_outputs`              an objective on outputs computed from others
`with_projection`                   an objective behind learned layers
`with_resized`                      an objective on maps that are resized to the size of others
`on_embeddings`                     any relation, on learned embeddings (CC)
`hint`                              FitNets: a learned regressor
`variational`                       VID: learned mean and variances
`paraphraser`, `factor_translator`  FT: an autoencoder of the teacher's feature, and the student's translator
`overhaul_connector`                OFD: a connector, the teacher's margins
`boundary_connector`                AB: a connector
`review`                            ReviewKD: fusion from deep to shallow
`foundation_features`               AM-RADIO: a head and statistics for each of several teachers
`masked_generation`                 MGD; `dual_masked_generation`: DMKD
`attention_graph`                   MHGD
`pyramid`, `aligned`                any feature objective or loss on every level of a pyramid of maps (PKD, CWD)
`focal_and_global`                  FGD; `fine_grained_imitation`: FGFI
`detector_kd`, `soft_detections`    a detector's classes and boxes, with labels (Chen et al.) and without
`crd`, `crd_queue`, `crd_in_batch`  CRD with a memory bank, with a queue, within the batch
`adversarial`, `wasserstein`        games with a discriminator of `jaxkd.objectives.discriminators`
`structured_segmentation`           SKD: classes of pixels, affinity of positions, a critic of whole maps
`inter_region`                      IntRA-KD: affinity between the regions of labels or predictions
`pose_heatmaps`, `integral_pose`    poses: heatmaps; and features and relations of joints
`temporal_adversarial`              DKD: a game with the changes of heatmaps between frames
`curriculum_temperature`            CTKD: learned temperatures; `instance_temperature`, `cosine_curriculum`
`learned_ensemble`                  several teachers, with weights learned from the labels
`dino`                              DINO: views of an image, without labels
`progressive_self_kd`               PS-KD: a table of past predictions; `past_probabilities` reads it
`gated_ensemble`                    ONE: a learned gate over branches
`peer_attention`                    OKDDip: attention over peers
`minilm`, `minilm_v2`, `tinybert`   transformers, by a map of layers; `mobilebert`, `distilbert`
`embedding_transfer`                sentence embeddings
`span_aligned`                      GOLD: language models with different tokenizers
`continual`                         objectives over a sequence of tasks
`discriminators`, `layers`          layers that objectives learn
==================================  =========================================================================

An objective is ``init(key, context) -> ObjectiveVars(params, state)`` and
``apply(params, state, context, key) -> ObjectiveOut(value, state, metrics)``.
"""

from jaxkd._core.batches import lookup
from jaxkd.objectives import continual, discriminators, layers
from jaxkd.objectives._adversarial import adversarial, wasserstein
from jaxkd.objectives._compose import combine, mask_out, masked_mean, reduce_values, replace, term
from jaxkd.objectives._contrastive._crd_bank import crd
from jaxkd.objectives._contrastive._crd_in_batch import crd_in_batch
from jaxkd.objectives._contrastive._crd_queue import crd_queue
from jaxkd.objectives._dense._detection import detection
from jaxkd.objectives._dense._detector import detector_kd, soft_detections
from jaxkd.objectives._dense._focal import focal_and_global
from jaxkd.objectives._dense._imitation import fine_grained_imitation
from jaxkd.objectives._dense._pose import integral_pose, pose_heatmaps, temporal_adversarial
from jaxkd.objectives._dense._pyramid import aligned, pyramid
from jaxkd.objectives._dense._resized import with_resized
from jaxkd.objectives._dense._segmentation import inter_region, structured_segmentation
from jaxkd.objectives._derived_outputs import with_derived_outputs
from jaxkd.objectives._ensembles._gated_ensemble import gated_ensemble
from jaxkd.objectives._ensembles._learned_ensemble import learned_ensemble
from jaxkd.objectives._ensembles._peer_attention import peer_attention
from jaxkd.objectives._ensembles._progressive_self_kd import past_probabilities, progressive_self_kd
from jaxkd.objectives._features._attention_graph import attention_graph
from jaxkd.objectives._features._boundary import boundary_connector
from jaxkd.objectives._features._factor import factor_translator, paraphraser
from jaxkd.objectives._features._foundation import foundation_features
from jaxkd.objectives._features._hint import hint
from jaxkd.objectives._features._masked import dual_masked_generation, masked_generation
from jaxkd.objectives._features._on_embeddings import on_embeddings
from jaxkd.objectives._features._overhaul import overhaul_connector
from jaxkd.objectives._features._review import review
from jaxkd.objectives._features._variational import variational
from jaxkd.objectives._language._layers import minilm, minilm_v2, mobilebert, tinybert
from jaxkd.objectives._language._outputs import distilbert, embedding_transfer
from jaxkd.objectives._language._spans import span_aligned
from jaxkd.objectives._linear_kd import linear_kd
from jaxkd.objectives._model_loss import model_loss
from jaxkd.objectives._projection import with_projection
from jaxkd.objectives._select import select
from jaxkd.objectives._self_supervised._dino import dino
from jaxkd.objectives._temperature import cosine_curriculum, curriculum_temperature, instance_temperature

__all__ = [
    "adversarial",
    "aligned",
    "attention_graph",
    "boundary_connector",
    "combine",
    "continual",
    "cosine_curriculum",
    "crd",
    "crd_in_batch",
    "crd_queue",
    "curriculum_temperature",
    "detection",
    "detector_kd",
    "dino",
    "discriminators",
    "distilbert",
    "dual_masked_generation",
    "embedding_transfer",
    "factor_translator",
    "fine_grained_imitation",
    "focal_and_global",
    "foundation_features",
    "gated_ensemble",
    "hint",
    "instance_temperature",
    "inter_region",
    "integral_pose",
    "layers",
    "learned_ensemble",
    "linear_kd",
    "lookup",
    "mask_out",
    "masked_generation",
    "masked_mean",
    "minilm",
    "minilm_v2",
    "mobilebert",
    "model_loss",
    "on_embeddings",
    "overhaul_connector",
    "paraphraser",
    "past_probabilities",
    "peer_attention",
    "pose_heatmaps",
    "progressive_self_kd",
    "pyramid",
    "reduce_values",
    "replace",
    "review",
    "select",
    "soft_detections",
    "span_aligned",
    "structured_segmentation",
    "temporal_adversarial",
    "term",
    "tinybert",
    "variational",
    "wasserstein",
    "with_derived_outputs",
    "with_projection",
    "with_resized",
]
