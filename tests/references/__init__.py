"""The losses again: plain NumPy in float64, written from the formulas of the papers, slow and obvious.

Nothing here is shared with the library, so that one mistake cannot hide in both. A reference has the name and the
signature of the loss in ``jaxkd.losses``, without ``where`` and ``axis_name``: `keep` drops the examples that do not
count, which is what masking has to mean. A file here is named after the file of the library that it mirrors.
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
from tests.references.attention import (
    attention_map,
    attention_transfer,
    channel_kl,
    factor_transfer,
    neuron_selectivity,
)
from tests.references.base import adaptive_average_pool, finite_difference, keep, log_softmax, same_size
from tests.references.chunked import linear_generalized_jsd, linear_soft_target_kl
from tests.references.contrastive import contrastive_nce, info_nce
from tests.references.detection import (
    bounded_regression,
    class_weighted_cross_entropy,
    feature_imitation,
    imitation_mask,
)
from tests.references.discrepancy import mean_discrepancy
from tests.references.distances import angle_relation, cosines, distance_relation, huber, normalized_distances
from tests.references.divergences import skew_kl, skew_reverse_kl, top_k_kl
from tests.references.flow import singular_vectors, solution_flow
from tests.references.gradients import jacobian_matching, reverse_gradient
from tests.references.logits import (
    cross_entropy,
    decoupled_kd,
    dist,
    generalized_jsd,
    logit_mse,
    reverse_kl,
    soft_target_kl,
    soft_target_kl_gradient,
    standardize_logits,
)
from tests.references.pose import heatmap_mse, joint_structure
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
from tests.references.targets import label_smoothing, soft_cross_entropy, virtual_teacher_kl
from tests.references.transformers import (
    attention_kl,
    attention_mse,
    drop_tokens,
    hidden_cosine,
    hidden_mse,
    value_relation_kl,
)
from tests.references.votes import voted_dissimilarity
