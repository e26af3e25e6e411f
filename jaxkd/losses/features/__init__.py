"""Feature losses: comparisons of intermediate activations.

=====================================  ================================================================================
`jaxkd.losses.features.activations`    `hint_mse`, `activation_boundary`, `overhaul`, `overhaul_margin`,
                                       `hierarchical_context`, `gaussian_nll`, `channel_weighted_mse`,
                                       `channel_importance`
`jaxkd.losses.features.attention`      `attention_transfer`, `factor_transfer`, `neuron_selectivity`, `channel_kl`
`jaxkd.losses.features.standardized`   `pearson_features`
`jaxkd.losses.features.flow`           `solution_flow`, `singular_vectors` and `singular_directions`
=====================================  ================================================================================

Feature maps are ``[batch, height, width, channels]``, and every loss returns one value per example.
"""

from .activations import (
    activation_boundary,
    channel_importance,
    channel_weighted_mse,
    gaussian_nll,
    hierarchical_context,
    hint_mse,
    overhaul,
    overhaul_margin,
)
from .attention import attention_transfer, channel_kl, factor_transfer, neuron_selectivity
from .flow import singular_directions, singular_vectors, solution_flow
from .standardized import pearson_features

__all__ = [
    "activation_boundary",
    "attention_transfer",
    "channel_importance",
    "channel_kl",
    "channel_weighted_mse",
    "factor_transfer",
    "gaussian_nll",
    "hierarchical_context",
    "hint_mse",
    "neuron_selectivity",
    "overhaul",
    "overhaul_margin",
    "pearson_features",
    "singular_directions",
    "singular_vectors",
    "solution_flow",
]
