"""Objectives: losses bound to their inputs, which may have parameters and state.

======================================  ====================================================================
`jaxkd.objectives.compose`              `term` (a loss bound to paths), `combine` (a sum, which nests); to write an
                                        objective: `lookup`, `replace`, `counted`, `mean`, `weighted`
`jaxkd.objectives.between`              `between` (an objective between two parts of the student: peers, exits, views)
`jaxkd.objectives.parts`                `with_parts` (an objective on derived outputs)
`jaxkd.objectives.mapped`               `mapped` (an objective behind learned layers)
`jaxkd.objectives.embedded`             `embedded` (any relation, on learned embeddings: CC)
`jaxkd.objectives.hint`                 `hint` (FitNets: a learned regressor)
`jaxkd.objectives.variational`          `variational` (VID: learned mean and variances)
`jaxkd.objectives.factor`               `paraphraser`, `factor_transfer` (FT)
`jaxkd.objectives.overhaul`             `overhaul` (OFD: a connector, the teacher's margins)
`jaxkd.objectives.boundary`             `activation_boundary` (AB: a connector)
`jaxkd.objectives.review`               `review` (ReviewKD: fusion from deep to shallow)
`jaxkd.objectives.masked`               `masked_generation` (MGD), `dual_masked_generation` (DMKD)
`jaxkd.objectives.attention_graph`      `attention_graph` (MHGD)
`jaxkd.objectives.crd_bank`             `crd` (CRD with a memory bank)
`jaxkd.objectives.crd_queue`            `crd_queue` (CRD with a queue)
`jaxkd.objectives.contrastive`          `crd_in_batch` (CRD within the batch)
`jaxkd.objectives.adversarial`          `adversarial`, `wasserstein`
`jaxkd.objectives.discriminators`       `Discriminator`, `mlp`, `convolutional`
`jaxkd.objectives.temperature`          `curriculum_temperature`, `instance_temperature` (CTKD), `cosine_curriculum`
`jaxkd.objectives.learned_ensemble`     `learned_ensemble` (several teachers, with weights learned from the labels)
`jaxkd.objectives.progressive`          `past_predictions` (PS-KD: a table of past predictions), `remembered`
`jaxkd.objectives.gated`                `gated` (ONE: a learned gate over branches)
`jaxkd.objectives.attentive`            `attentive` (OKDDip: attention over peers)
======================================  ====================================================================

An objective is ``init(key, context) -> LossVars(params, state)`` and
``apply(params, state, context, key) -> LossOut(value, state, metrics)``. `jaxkd.objectives.layers` has the layers that
objectives learn, `jaxkd.objectives.draws` random numbers that do not depend on the number of devices.
"""

from jaxkd.objectives.adversarial import adversarial, wasserstein
from jaxkd.objectives.attention_graph import attention_graph
from jaxkd.objectives.attentive import attentive
from jaxkd.objectives.between import between
from jaxkd.objectives.boundary import activation_boundary
from jaxkd.objectives.compose import combine, counted, lookup, mean, replace, term, weighted
from jaxkd.objectives.contrastive import crd_in_batch
from jaxkd.objectives.crd_bank import crd
from jaxkd.objectives.crd_queue import crd_queue
from jaxkd.objectives.discriminators import Discriminator, convolutional, mlp
from jaxkd.objectives.embedded import embedded
from jaxkd.objectives.factor import factor_transfer, paraphraser
from jaxkd.objectives.gated import gated
from jaxkd.objectives.hint import hint
from jaxkd.objectives.learned_ensemble import learned_ensemble
from jaxkd.objectives.mapped import mapped
from jaxkd.objectives.masked import dual_masked_generation, masked_generation
from jaxkd.objectives.overhaul import overhaul
from jaxkd.objectives.parts import with_parts
from jaxkd.objectives.progressive import past_predictions, remembered
from jaxkd.objectives.review import review
from jaxkd.objectives.temperature import cosine_curriculum, curriculum_temperature, instance_temperature
from jaxkd.objectives.variational import variational

__all__ = [
    "Discriminator",
    "activation_boundary",
    "adversarial",
    "attention_graph",
    "attentive",
    "between",
    "combine",
    "convolutional",
    "cosine_curriculum",
    "counted",
    "crd",
    "crd_in_batch",
    "crd_queue",
    "curriculum_temperature",
    "dual_masked_generation",
    "embedded",
    "factor_transfer",
    "gated",
    "hint",
    "instance_temperature",
    "learned_ensemble",
    "lookup",
    "mapped",
    "masked_generation",
    "mean",
    "mlp",
    "overhaul",
    "paraphraser",
    "past_predictions",
    "remembered",
    "replace",
    "review",
    "term",
    "variational",
    "wasserstein",
    "weighted",
    "with_parts",
]
