"""Schemes with several trainings, one after another, in one distiller.

============  ========================================================================================================
`staged`      one student and teacher, several objectives: first features, then the task
`Stage`       objective, optimizer and length of one stage
`sequential`  any distillers; each may begin with what an earlier one trained
`Phase`       distiller, length and initial state of one phase of a sequence
`inherit`     initial state of a phase: an earlier student as its student or teacher
`assistants`  a chain of networks between teacher and student (TAKD)
`chains`      all chains through some assistants
`best_chain`  search for the best chain with one distillation for each pair of networks
`born_again`  generations of one architecture, and their ensemble (BAN)
============  ========================================================================================================
"""

from jaxkd.schemes.phases._assistants import assistants, best_chain, chains
from jaxkd.schemes.phases._born_again import born_again
from jaxkd.schemes.phases._sequential import Phase, inherit, sequential
from jaxkd.schemes.phases._staged import Stage, staged

__all__ = ["Phase", "Stage", "assistants", "best_chain", "born_again", "chains", "inherit", "sequential", "staged"]
