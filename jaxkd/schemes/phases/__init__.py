"""Schemes with several trainings, one after another, in one distiller."""

from jaxkd.schemes.phases._assistants import assistants, best_chain, chains
from jaxkd.schemes.phases._born_again import born_again
from jaxkd.schemes.phases._sequential import Phase, inherit, sequential
from jaxkd.schemes.phases._staged import Stage, staged

__all__ = ["Phase", "Stage", "assistants", "best_chain", "born_again", "chains", "inherit", "sequential", "staged"]
