"""Losses of language models from hidden states, without all tokens' logits.

=====================================  =================================================================================
`jaxkd.losses.chunked.divergences`     `linear_soft_target_kl`, `linear_reverse_kl`, `linear_generalized_jsd`,
                                       `linear_skew_kl`, `linear_skew_reverse_kl`, `linear_total_variation`
`jaxkd.losses.chunked.known`           `linear_cross_entropy`, `linear_cross_entropy_and_kl`, `linear_top_k_kl`,
                                       `linear_sparse_cross_entropy`
=====================================  =================================================================================

A language model's last layer multiplies with a vocabulary so large that its logits take more memory than the rest of
the step. These losses take the inputs and the kernel of that layer instead. Values and gradients are those of the same
loss of the logits ``hidden @ kernel + bias``. All have one kernel, which scans over chunks of tokens; a loss is a rule
that returns a chunk's values and their derivatives by the logits.
"""

from .divergences import (
    linear_generalized_jsd,
    linear_reverse_kl,
    linear_skew_kl,
    linear_skew_reverse_kl,
    linear_soft_target_kl,
    linear_total_variation,
)
from .known import (
    linear_cross_entropy,
    linear_cross_entropy_and_kl,
    linear_sparse_cross_entropy,
    linear_top_k_kl,
)

__all__ = [
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
]
