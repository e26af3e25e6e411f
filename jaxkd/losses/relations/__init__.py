"""Relation losses: how the examples of a batch lie to one another.

====================================  ========================================
`jaxkd.losses.relations.distances`    `distance_relation`, `angle_relation`
====================================  ========================================
"""

from jaxkd.losses.relations.distances import angle_relation, distance_relation

__all__ = ["angle_relation", "distance_relation"]
