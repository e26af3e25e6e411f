"""Schemes in which several networks are trained together and teach each other.

===============  =====================================================================================================
`online`         a teacher and its student, trained in the same step
`mutual`         peers that teach each other pairwise (DML)
`diverse_peers`  peers with targets from attention over all peers, and a leader taught by their mean (OKDDip)
`branches`       branches of one network, taught by their gated ensemble (ONE)
`collaborative`  students taught by an ensemble that is built with the labels (KDCL)
`ramp_up`        weight schedule for distillation between networks that start untrained
===============  =====================================================================================================
"""

from jaxkd.schemes.peers._branches import branches
from jaxkd.schemes.peers._collaborative import collaborative
from jaxkd.schemes.peers._diverse_peers import diverse_peers
from jaxkd.schemes.peers._mutual import mutual
from jaxkd.schemes.peers._online import online
from jaxkd.schemes.peers._ramp import ramp_up

__all__ = ["branches", "collaborative", "diverse_peers", "mutual", "online", "ramp_up"]
