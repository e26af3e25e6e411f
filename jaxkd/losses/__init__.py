"""Losses: pure functions of arrays.

===============================  ==============================================================================
`jaxkd.losses.kl`                `soft_target_kl`, `reverse_kl`, `generalized_jsd`, `skew_kl`, `skew_reverse_kl`,
                                 `top_k_kl`
`jaxkd.losses.logits`            `logit_mse`, `decoupled_kd`, `dist`, `standardize_logits`
`jaxkd.losses.probabilities`     `total_variation`, `universal_logit_distance`
`jaxkd.losses.rankings`          `margin_mse`
`jaxkd.losses.labels`            `cross_entropy`, `soft_cross_entropy`, `label_smoothing`, `virtual_teacher_kl`
`jaxkd.losses.binary`            `binary_cross_entropy`, `binary_kl`: one sigmoid per label
`jaxkd.losses.ensembles`         `best_logits`, `combined_logits`, `min_logits`: one teacher from several networks
`jaxkd.losses.features`          `hint_mse`, `attention_transfer`, `factor_transfer`, `neuron_selectivity`,
                                 `activation_boundary`, `overhaul` and `overhaul_margin`, `hierarchical_context`,
                                 `gaussian_nll`, `channel_kl`, `channel_weighted_mse` and `channel_importance`,
                                 `pearson_features`, `solution_flow`, `singular_vectors` and `singular_directions`;
                                 `match_size` pools two maps to one size
`jaxkd.losses.relations`         `distance_relation`, `angle_relation`, `similarity_preserving`,
                                 `correlation_congruence`, `consecutive_correlation`, `probabilistic_transfer`,
                                 `darkrank_soft`, `darkrank_hard`, `voted_dissimilarity`, `mean_discrepancy`
`jaxkd.losses.contrastive`       `contrastive_nce`, `info_nce`
`jaxkd.losses.transformers`      `attention_kl`, `attention_mse`, `value_relation_kl`, `hidden_cosine`, `hidden_mse`
`jaxkd.losses.sequence`          `ctc`, `ctc_n_best`, `n_best_nll`, `frame_kl`
`jaxkd.losses.chunked`           from hidden states: `linear_cross_entropy`, `linear_soft_target_kl`, both as
                                 `linear_cross_entropy_and_kl`, `linear_reverse_kl`, `linear_generalized_jsd`,
                                 `linear_skew_kl`, `linear_skew_reverse_kl`, `linear_total_variation`,
                                 `linear_top_k_kl`, `linear_sparse_cross_entropy`
`jaxkd.losses.sparse`            `sparse_cross_entropy`: targets that list a few classes
`jaxkd.losses.gradients`         `jacobian_matching`, `reverse_gradient`
`jaxkd.losses.dense`             detection: `class_weighted_cross_entropy`, `bounded_regression`, `imitation_mask`,
                                 `feature_imitation`, `focal_global`, `sigmoid_focal`, `smooth_l1`; segmentation:
                                 `pixel_kl`, `pair_affinity`, `region_moments`, `region_affinity`; pose:
                                 `heatmap_mse`, `joint_structure`
===============================  ==============================================================================

Every loss keeps one contract: student first, teacher second, everything else by keyword; one value per example, so that
``fn(...).mean()`` is the published loss; float32 or better inside; ``where`` is a mask, True for the entries to
include, and masking an example gives the same result as dropping it; ``axis_name`` relates the examples of all devices;
gradients are finite; a mismatch is a `ValueError` while tracing, never a broadcast.

The folder needs only jax (`ctc` also optax) and imports nothing of jaxkd outside of itself, by relative paths: copy it
into another project, under any name, to vendor it.
"""

from ._numerics import match_size
from .binary import binary_cross_entropy, binary_kl
from .chunked import (
    linear_cross_entropy,
    linear_cross_entropy_and_kl,
    linear_generalized_jsd,
    linear_reverse_kl,
    linear_skew_kl,
    linear_skew_reverse_kl,
    linear_soft_target_kl,
    linear_sparse_cross_entropy,
    linear_top_k_kl,
    linear_total_variation,
)
from .contrastive import contrastive_nce, info_nce
from .dense import (
    bounded_regression,
    class_weighted_cross_entropy,
    feature_imitation,
    focal_global,
    heatmap_mse,
    imitation_mask,
    joint_structure,
    pair_affinity,
    pixel_kl,
    region_affinity,
    region_moments,
    sigmoid_focal,
    smooth_l1,
)
from .ensembles import best_logits, combined_logits, min_logits
from .features import (
    activation_boundary,
    attention_transfer,
    channel_importance,
    channel_kl,
    channel_weighted_mse,
    factor_transfer,
    gaussian_nll,
    hierarchical_context,
    hint_mse,
    neuron_selectivity,
    overhaul,
    overhaul_margin,
    pearson_features,
    singular_directions,
    singular_vectors,
    solution_flow,
)
from .gradients import jacobian_matching, reverse_gradient
from .kl import generalized_jsd, reverse_kl, skew_kl, skew_reverse_kl, soft_target_kl, top_k_kl
from .labels import cross_entropy, label_smoothing, soft_cross_entropy, virtual_teacher_kl
from .logits import decoupled_kd, dist, logit_mse, standardize_logits
from .probabilities import total_variation, universal_logit_distance
from .rankings import margin_mse
from .relations import (
    angle_relation,
    consecutive_correlation,
    correlation_congruence,
    darkrank_hard,
    darkrank_soft,
    distance_relation,
    mean_discrepancy,
    probabilistic_transfer,
    similarity_preserving,
    voted_dissimilarity,
)
from .sequence import ctc, ctc_n_best, frame_kl, n_best_nll
from .sparse import sparse_cross_entropy
from .transformers import attention_kl, attention_mse, hidden_cosine, hidden_mse, value_relation_kl

__all__ = [
    "activation_boundary",
    "angle_relation",
    "attention_kl",
    "attention_mse",
    "attention_transfer",
    "best_logits",
    "binary_cross_entropy",
    "binary_kl",
    "bounded_regression",
    "channel_importance",
    "channel_kl",
    "channel_weighted_mse",
    "class_weighted_cross_entropy",
    "combined_logits",
    "consecutive_correlation",
    "contrastive_nce",
    "correlation_congruence",
    "cross_entropy",
    "ctc",
    "ctc_n_best",
    "darkrank_hard",
    "darkrank_soft",
    "decoupled_kd",
    "dist",
    "distance_relation",
    "factor_transfer",
    "feature_imitation",
    "focal_global",
    "frame_kl",
    "gaussian_nll",
    "generalized_jsd",
    "heatmap_mse",
    "hidden_cosine",
    "hidden_mse",
    "hierarchical_context",
    "hint_mse",
    "imitation_mask",
    "info_nce",
    "jacobian_matching",
    "joint_structure",
    "label_smoothing",
    "linear_cross_entropy",
    "linear_cross_entropy_and_kl",
    "linear_generalized_jsd",
    "linear_reverse_kl",
    "linear_skew_kl",
    "linear_skew_reverse_kl",
    "linear_soft_target_kl",
    "linear_sparse_cross_entropy",
    "linear_top_k_kl",
    "linear_total_variation",
    "logit_mse",
    "margin_mse",
    "match_size",
    "mean_discrepancy",
    "min_logits",
    "n_best_nll",
    "neuron_selectivity",
    "overhaul",
    "overhaul_margin",
    "pair_affinity",
    "pearson_features",
    "pixel_kl",
    "probabilistic_transfer",
    "region_affinity",
    "region_moments",
    "reverse_gradient",
    "reverse_kl",
    "sigmoid_focal",
    "similarity_preserving",
    "singular_directions",
    "singular_vectors",
    "skew_kl",
    "skew_reverse_kl",
    "smooth_l1",
    "soft_cross_entropy",
    "soft_target_kl",
    "solution_flow",
    "sparse_cross_entropy",
    "standardize_logits",
    "top_k_kl",
    "total_variation",
    "universal_logit_distance",
    "value_relation_kl",
    "virtual_teacher_kl",
    "voted_dissimilarity",
]
