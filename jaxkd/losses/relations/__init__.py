"""Relation losses: how the examples of a batch lie to one another.

Each compares the geometry of a batch, so that student and teacher embeddings may differ in size. Each returns every
anchor's share of a value that is the mean over anchors, and relates the examples of all devices by ``axis_name``.

=====================================  ================================================================================
`jaxkd.losses.relations.distances`     `distance_relation`, `angle_relation` (RKD)
`jaxkd.losses.relations.similarities`  `similarity_preserving` (SP), `correlation_congruence` (CC),
                                       `consecutive_correlation`, `probabilistic_transfer` (PKT)
`jaxkd.losses.relations.ranks`         `darkrank_hard`, `darkrank_soft`
`jaxkd.losses.relations.votes`         `voted_dissimilarity` (several teachers')
=====================================  ================================================================================
"""

from jaxkd.losses.relations.distances import angle_relation, distance_relation
from jaxkd.losses.relations.ranks import darkrank_hard, darkrank_soft
from jaxkd.losses.relations.similarities import (
    consecutive_correlation,
    correlation_congruence,
    probabilistic_transfer,
    similarity_preserving,
)
from jaxkd.losses.relations.votes import voted_dissimilarity

__all__ = [
    "angle_relation",
    "consecutive_correlation",
    "correlation_congruence",
    "darkrank_hard",
    "darkrank_soft",
    "distance_relation",
    "probabilistic_transfer",
    "similarity_preserving",
    "voted_dissimilarity",
]
