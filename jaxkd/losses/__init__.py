"""Losses: pure functions of arrays.

========================  =====================================================================================
`jaxkd.losses.logits`     `cross_entropy`, `soft_target_kl`, `logit_mse`, `standardize_logits`
`jaxkd.losses.features`   `hint_mse`, `attention_transfer`
`jaxkd.losses.relations`  `distance_relation`, `angle_relation`
========================  =====================================================================================

The contract, the same for all: student first, teacher second, everything else by keyword; one value per example, so
``fn(...).mean()`` is the published loss; float32 or better inside; ``where`` is True for what counts and masking an
example is the same as dropping it; ``axis_name`` relates the examples of all devices; gradients are finite; a mismatch
is a `ValueError` while tracing, never a broadcast.

Each file stands alone, so that it can be lifted into another project. That is why each carries its own dozen lines of
checks.
"""

from jaxkd.losses.features import attention_transfer, hint_mse
from jaxkd.losses.logits import cross_entropy, logit_mse, soft_target_kl, standardize_logits
from jaxkd.losses.relations import angle_relation, distance_relation

__all__ = [
    "angle_relation",
    "attention_transfer",
    "cross_entropy",
    "distance_relation",
    "hint_mse",
    "logit_mse",
    "soft_target_kl",
    "standardize_logits",
]
