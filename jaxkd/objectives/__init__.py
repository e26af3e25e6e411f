"""Objectives: losses that know where their inputs are, and may own parameters and state.

======================================  ====================================================================
`jaxkd.objectives.compose`              `term` (a loss bound to paths), `combine` (a sum, which nests); for
                                        objectives of one's own: `lookup`, `replace`, `counted`, `mean`, `weighted`
`jaxkd.objectives.between`              `between` (an objective between two parts of the student: peers, exits, views)
`jaxkd.objectives.learned_ensemble`     `learned_ensemble` (several teachers, weighed by what the labels say of them)
`jaxkd.objectives.progressive`          `past_predictions` (PS-KD: a table of what the student said), `remembered`
`jaxkd.objectives.gated`                `gated` (ONE: a learned gate over branches)
`jaxkd.objectives.attentive`            `attentive` (OKDDip: attention over peers)
`jaxkd.objectives.parts`                `with_parts` (outputs made of other outputs, for an objective)
`jaxkd.objectives.mapped`               `mapped` (a term on features that learned layers have changed)
`jaxkd.objectives.hint`                 `hint` (FitNets: the regressor is learned with the student)
`jaxkd.objectives.variational`          `variational` (VID: mean network and variances)
`jaxkd.objectives.factor`               `paraphraser`, `factor_transfer` (FT)
`jaxkd.objectives.overhaul`             `overhaul` (OFD: a connector, the teacher's margins)
`jaxkd.objectives.boundary`             `activation_boundary` (AB: a connector)
`jaxkd.objectives.review`               `review` (ReviewKD: fusion from deep to shallow)
`jaxkd.objectives.embedded`             `embedded` (any relation of learned embeddings: CC)
`jaxkd.objectives.masked`               `masked_generation` (MGD), `dual_masked_generation` (DMKD)
`jaxkd.objectives.contrastive`          `crd` (a bank), `crd_queue`, `crd_in_batch`
`jaxkd.objectives.attention_graph`      `attention_graph` (MHGD)
`jaxkd.objectives.adversarial`          `adversarial`, `wasserstein`, with discriminators `mlp`, `convolutional`
`jaxkd.objectives.temperature`          `curriculum_temperature`, `instance_temperature` (CTKD), `cosine_curriculum`
======================================  ====================================================================

An objective is ``init(key, context) -> LossVars(params, state)`` and
``apply(params, state, context, key) -> LossOut(value, state, metrics)``. Its layers are in `jaxkd.objectives.layers`,
random numbers that do not depend on the number of devices in `jaxkd.objectives.draws`.
"""

from jaxkd.objectives.adversarial import Discriminator, adversarial, convolutional, mlp, wasserstein
from jaxkd.objectives.attention_graph import attention_graph
from jaxkd.objectives.attentive import attentive
from jaxkd.objectives.between import between
from jaxkd.objectives.boundary import activation_boundary
from jaxkd.objectives.compose import combine, counted, lookup, mean, replace, term, weighted
from jaxkd.objectives.contrastive import crd, crd_in_batch, crd_queue
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
