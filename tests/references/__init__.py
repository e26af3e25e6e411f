"""References of the losses: plain float64 NumPy, written from the formulas of the papers, slow and obvious.

A reference shares no code with the library, so that one mistake cannot be in both. It has the name and the signature
of the loss in ``jaxkd.losses``, without ``where`` and ``axis_name``: `keep` drops the masked examples, which is the
meaning of a mask. A file here has the name of the library's file that it mirrors.
"""

from tests.references.activations import (
    activation_boundary,
    channel_importance,
    channel_weighted_mse,
    gaussian_nll,
    hierarchical_context,
    hint_mse,
    overhaul,
    overhaul_margin,
)
from tests.references.anchors import sigmoid_focal, smooth_l1
from tests.references.attention import (
    attention_map,
    attention_transfer,
    channel_kl,
    factor_transfer,
    neuron_selectivity,
)
from tests.references.base import adaptive_average_pool, finite_difference, keep, log_softmax, same_size
from tests.references.binary import binary_cross_entropy, binary_kl
from tests.references.chunked import (
    linear_cross_entropy,
    linear_generalized_jsd,
    linear_reverse_kl,
    linear_skew_kl,
    linear_skew_reverse_kl,
    linear_soft_target_kl,
    linear_sparse_cross_entropy,
    linear_top_k_kl,
    linear_total_variation,
)
from tests.references.contrastive import contrastive_nce, info_nce
from tests.references.detection import (
    bounded_regression,
    class_weighted_cross_entropy,
    feature_imitation,
    imitation_mask,
)
from tests.references.discrepancy import mean_discrepancy
from tests.references.distances import angle_relation, cosines, distance_relation, huber, normalized_distances
from tests.references.flow import singular_vectors, solution_flow
from tests.references.focal import focal_global
from tests.references.gradients import jacobian_matching, reverse_gradient
from tests.references.kl import (
    generalized_jsd,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    soft_target_kl,
    soft_target_kl_gradient,
    top_k_kl,
)
from tests.references.labels import cross_entropy, label_smoothing, soft_cross_entropy, virtual_teacher_kl
from tests.references.logits import decoupled_kd, dist, logit_mse, standardize_logits
from tests.references.pose import heatmap_mse, joint_structure
from tests.references.probabilities import total_variation, universal_logit_distance
from tests.references.rankings import margin_mse
from tests.references.ranks import darkrank_hard, darkrank_soft
from tests.references.regions import region_affinity, region_moments
from tests.references.segmentation import pair_affinity, pixel_kl
from tests.references.sequence import ctc, ctc_by_enumeration, ctc_n_best, frame_kl, n_best_nll
from tests.references.similarities import (
    consecutive_correlation,
    correlation_congruence,
    probabilistic_transfer,
    similarity_preserving,
)
from tests.references.sparse import sparse_cross_entropy
from tests.references.standardized import pearson_features
from tests.references.transformers import (
    attention_kl,
    attention_mse,
    drop_tokens,
    hidden_cosine,
    hidden_mse,
    value_relation_kl,
)
from tests.references.votes import voted_dissimilarity
