"""Distillation schemes, each a `jaxkd.Distiller`: who teaches whom, and when.

==================  =================================================================================================
offline             `jaxkd.distill`: a trained, frozen teacher
`peers`             networks that learn together: `online`, `mutual` (DML), `diverse_peers` (OKDDip), `branches`
                    (ONE), `collaborative` (KDCL)
`self_distillation` a network that teaches itself: `byot` (BYOT), `class_wise` (CS-KD), `two_views` (DDGSD)
`phases`            trainings one after another: `staged`, `relay`, `assistants` (TAKD), `born_again` (BAN)
`continual`         tasks one after another: `learning_without_forgetting` (LwF), `lifelong`, `retrospection`
`synthesis`         images made from the teacher: `data_free` with `synthesis.dafl`, `synthesis.inversion` or
                    `synthesis.cmi`
`transfer`          the teacher's layers instead of its outputs: `knowledge_flow`, `few_sample` (FSKD)
==================  =================================================================================================

The schemes are exported here. Their helpers, such as `phases.Leg` or `self_distillation.exit_head`, are exported by the
subpackage of their family.
"""

from jaxkd.schemes.continual import learning_without_forgetting, lifelong, retrospection
from jaxkd.schemes.peers import branches, collaborative, diverse_peers, mutual, online
from jaxkd.schemes.phases import assistants, born_again, relay, staged
from jaxkd.schemes.self_distillation import byot, class_wise, two_views
from jaxkd.schemes.synthesis import data_free
from jaxkd.schemes.transfer import few_sample, knowledge_flow

__all__ = [
    "assistants",
    "born_again",
    "branches",
    "byot",
    "class_wise",
    "collaborative",
    "data_free",
    "diverse_peers",
    "few_sample",
    "knowledge_flow",
    "learning_without_forgetting",
    "lifelong",
    "mutual",
    "online",
    "relay",
    "retrospection",
    "staged",
    "two_views",
]
