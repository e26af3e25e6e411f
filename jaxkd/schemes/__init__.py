"""Distillation schemes, each a `jaxkd.Distiller`: who teaches whom, and when.

==================  =================================================================================================
offline             `jaxkd.distill`: a trained, frozen teacher
`peers`             networks that learn together: `online`, `mutual` (DML), `diverse_peers` (OKDDip), `branches`
                    (ONE), `collaborative` (KDCL)
`self_distillation` a network that teaches itself: `byot` (BYOT), `class_wise` (CS-KD), `distorted_views` (DDGSD)
`phases`            trainings one after another: `staged`, `sequential`, `assistants` (TAKD), `born_again` (BAN)
`continual`         tasks one after another: `learning_without_forgetting` (LwF), `lifelong`, `retrospection`
`synthesis`         images made from the teacher: `data_free` with `synthesis.dafl`, `synthesis.inversion` or
                    `synthesis.cmi`
`sequences`         examples made by student or teacher: `on_policy` (GKD), `sequence_level` (Seq-KD)
`streams`           a student that adapts to a video while it runs: `streams.key_frames` (TKD)
`transfer`          the teacher's layers instead of its outputs: `knowledge_flow`, `few_sample` (FSKD)
==================  =================================================================================================

The subpackage of a family also exports helpers: `peers.ramp_up`; `self_distillation.exit_head`; `phases.Stage`,
`Phase`, `inherit`, `chains`, `best_chain`; `sequences.interactive` (examples that continue over steps, such as
episodes), `teacher_mixed`, `replay` (DistiLLM) and `reverse_kl_to_go` and `linear_reverse_kl_to_go` (MiniLLM);
`synthesis.Synthesis`; `streams.at_intervals`, `at_random`, `on_change` and `as_predicted`, which choose key frames, and
`streams.confident_mse`; `transfer.FewSampleLayer`, `dependence_loss`, `report_dependence`.
"""

from jaxkd.schemes import continual, peers, phases, self_distillation, sequences, streams, synthesis, transfer
from jaxkd.schemes.continual._lifelong import learning_without_forgetting, lifelong
from jaxkd.schemes.continual._retrospection import retrospection
from jaxkd.schemes.peers._branches import branches
from jaxkd.schemes.peers._collaborative import collaborative
from jaxkd.schemes.peers._diverse_peers import diverse_peers
from jaxkd.schemes.peers._mutual import mutual
from jaxkd.schemes.peers._online import online
from jaxkd.schemes.phases._assistants import assistants
from jaxkd.schemes.phases._born_again import born_again
from jaxkd.schemes.phases._sequential import sequential
from jaxkd.schemes.phases._staged import staged
from jaxkd.schemes.self_distillation._be_your_own_teacher import byot
from jaxkd.schemes.self_distillation._class_wise import class_wise
from jaxkd.schemes.self_distillation._distorted_views import distorted_views
from jaxkd.schemes.sequences._on_policy import on_policy
from jaxkd.schemes.sequences._sequence_level import sequence_level
from jaxkd.schemes.synthesis._data_free import data_free
from jaxkd.schemes.transfer._few_sample import few_sample
from jaxkd.schemes.transfer._knowledge_flow import knowledge_flow

__all__ = [
    "assistants",
    "born_again",
    "branches",
    "byot",
    "class_wise",
    "collaborative",
    "data_free",
    "distorted_views",
    "diverse_peers",
    "few_sample",
    "knowledge_flow",
    "learning_without_forgetting",
    "lifelong",
    "mutual",
    "on_policy",
    "online",
    "retrospection",
    "sequence_level",
    "sequential",
    "staged",
]
