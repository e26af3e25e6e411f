"""Feature losses: what an intermediate activation of the student should be.

============================================  =====================================================
`jaxkd.losses.features.activations`           `hint_mse`
`jaxkd.losses.features.attention`             `attention_transfer`
============================================  =====================================================
"""

from jaxkd.losses.features.activations import hint_mse
from jaxkd.losses.features.attention import attention_transfer

__all__ = ["attention_transfer", "hint_mse"]
