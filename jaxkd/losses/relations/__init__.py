"""Relation losses: comparisons of the geometry of a batch.

Student and teacher embeddings may differ in size. Every function returns each anchor's share, and the mean over the
anchors is the published value. With ``axis_name``, each local anchor relates to the examples of all devices, so that
the result does not depend on the number of devices.

=====================================  ================================================================================
`jaxkd.losses.relations.distances`     `distance_relation`, `angle_relation` (RKD)
`jaxkd.losses.relations.similarities`  `similarity_preserving` (SP), `correlation_congruence` (CC),
                                       `consecutive_correlation`, `probabilistic_transfer` (PKT)
`jaxkd.losses.relations.ranks`         `darkrank_hard`, `darkrank_soft`
`jaxkd.losses.relations.votes`         `voted_dissimilarity` (several teachers)
`jaxkd.losses.relations.discrepancy`   `mean_discrepancy` (MMD, linear kernel)
=====================================  ================================================================================
"""

from .discrepancy import mean_discrepancy
from .distances import angle_relation, distance_relation
from .ranks import darkrank_hard, darkrank_soft
from .similarities import (
    consecutive_correlation,
    correlation_congruence,
    probabilistic_transfer,
    similarity_preserving,
)
from .votes import voted_dissimilarity

__all__ = [
    "angle_relation",
    "consecutive_correlation",
    "correlation_congruence",
    "darkrank_hard",
    "darkrank_soft",
    "distance_relation",
    "mean_discrepancy",
    "probabilistic_transfer",
    "similarity_preserving",
    "voted_dissimilarity",
]
