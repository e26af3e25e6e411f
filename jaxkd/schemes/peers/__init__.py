"""Schemes in which several networks are trained together and teach each other."""

from jaxkd.schemes.peers._branches import branches
from jaxkd.schemes.peers._collaborative import collaborative
from jaxkd.schemes.peers._diverse_peers import diverse_peers
from jaxkd.schemes.peers._mutual import mutual
from jaxkd.schemes.peers._online import online
from jaxkd.schemes.peers._ramp import ramp_up

__all__ = ["branches", "collaborative", "diverse_peers", "mutual", "online", "ramp_up"]
