"""Objectives: losses bound to their inputs, which may have parameters and state.

======================================  ====================================================================
`jaxkd.objectives._compose`              `term` (a loss bound to paths), `combine` (a sum, which nests); to write an
                                        objective: `lookup`, `replace`, `mask_out`, `masked_mean`, `reduce_values`
`jaxkd.objectives.select`              `select` (an objective between two parts of the student: peers, exits, views)
`jaxkd.objectives._derived_outputs`                `with_derived_outputs` (an objective on derived outputs)
`jaxkd.objectives.with_projection`               `with_projection` (an objective behind learned layers)
`jaxkd.objectives.on_embeddings`             `on_embeddings` (any relation, on learned embeddings: CC)
`jaxkd.objectives.hint`                 `hint` (FitNets: a learned regressor)
`jaxkd.objectives.variational`          `variational` (VID: learned mean and variances)
`jaxkd.objectives._features._factor`               `paraphraser`, `factor_translator` (FT)
`jaxkd.objectives.overhaul_connector`             `overhaul_connector` (OFD: a connector, the teacher's margins)
`jaxkd.objectives._features._boundary`             `boundary_connector` (AB: a connector)
`jaxkd.objectives.review`               `review` (ReviewKD: fusion from deep to shallow)
`jaxkd.objectives._features._masked`               `masked_generation` (MGD), `dual_masked_generation` (DMKD)
`jaxkd.objectives.attention_graph`      `attention_graph` (MHGD)
`jaxkd.objectives._contrastive._crd_bank`             `crd` (CRD with a memory bank)
`jaxkd.objectives.crd_queue`            `crd_queue` (CRD with a queue)
`jaxkd.objectives._contrastive._crd_in_batch`          `crd_in_batch` (CRD within the batch)
`jaxkd.objectives.adversarial`          `adversarial`, `wasserstein`
`jaxkd.objectives.discriminators`       `Discriminator`, `mlp`, `conv`
`jaxkd.objectives._temperature`          `curriculum_temperature`, `instance_temperature` (CTKD), `cosine_curriculum`
`jaxkd.objectives.learned_ensemble`     `learned_ensemble` (several teachers, with weights learned from the labels)
`jaxkd.objectives._ensembles._progressive_self_kd`          `progressive_self_kd` (PS-KD: a table of past predictions), `past_probabilities`
`jaxkd.objectives.gated_ensemble`                `gated_ensemble` (ONE: a learned gate over branches)
`jaxkd.objectives.peer_attention`            `peer_attention` (OKDDip: attention over peers)
======================================  ====================================================================

An objective is ``init(key, context) -> ObjectiveVars(params, state)`` and
``apply(params, state, context, key) -> ObjectiveOut(value, state, metrics)``. `jaxkd.objectives.layers` has the layers that
objectives learn, `jaxkd._core.example_keys` random numbers that do not depend on the number of devices.
"""

from jaxkd.objectives._adversarial import adversarial, wasserstein
from jaxkd.objectives._features._attention_graph import attention_graph
from jaxkd.objectives._ensembles._peer_attention import peer_attention
from jaxkd.objectives._select import select
from jaxkd.objectives._features._boundary import boundary_connector
from jaxkd.objectives._compose import combine, mask_out, lookup, masked_mean, replace, term, reduce_values
from jaxkd.objectives._contrastive._crd_in_batch import crd_in_batch
from jaxkd.objectives._contrastive._crd_bank import crd
from jaxkd.objectives._contrastive._crd_queue import crd_queue
from jaxkd.objectives.discriminators import Discriminator, conv, mlp
from jaxkd.objectives._features._on_embeddings import on_embeddings
from jaxkd.objectives._features._factor import factor_translator, paraphraser
from jaxkd.objectives._ensembles._gated_ensemble import gated_ensemble
from jaxkd.objectives._features._hint import hint
from jaxkd.objectives._ensembles._learned_ensemble import learned_ensemble
from jaxkd.objectives._projection import with_projection
from jaxkd.objectives._features._masked import dual_masked_generation, masked_generation
from jaxkd.objectives._features._overhaul import overhaul_connector
from jaxkd.objectives._derived_outputs import with_derived_outputs
from jaxkd.objectives._ensembles._progressive_self_kd import progressive_self_kd, past_probabilities
from jaxkd.objectives._features._review import review
from jaxkd.objectives._temperature import cosine_curriculum, curriculum_temperature, instance_temperature
from jaxkd.objectives._features._variational import variational

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
